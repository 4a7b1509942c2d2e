"""The journal of what must not run twice: what it knows of a command, and what it forgets."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import Any

import pytest

from arc_agent.config.sections import SpoolSection
from arc_agent.host.data_dir import DataDir
from arc_agent.jobs.job import Addresses, Job
from arc_agent.jobs.outcome import Dropped, Ended, Failed, GivenBack, Outcome, Succeeded
from arc_agent.jobs.run_journal import MAX_ANNOUNCED_BYTES, RunJournal, answer_left
from arc_agent.jobs.spool import Entry, Spool
from arc_protocol.codec import decode
from arc_protocol.messages.leases import LeaseInfo

WHERE = Addresses("https://server/response?lease=l", None)
LEASE = """{"leaseId": "%s", "leaseExpiresAt": "2026-11-24T10:00:00Z", "commandId": "%s",
 "attempt": %d, "envelope": {"protocol": "arc.v1", "deploymentId": "d",
 "target": {"resourceId": "default", "resourceType": "daemon"}, "commandId": "%s", "attempt": %d,
 "command": "pay", "params": {"mode": "inline", "inlineBase64": "e30="},
 "responseHandling": {"maxInlineBytes": 1000, "submitResponseUrl": "https://server/response",
  "storageUploadRequest": {"backend": {"type": "http", "url": "https://server/blob",
   "method": "PUT", "headers": {}}, "expiration": "2026-11-24T10:00:00Z", "operation": "put",
   "path": "p"}}}}"""


def job(attempt: int = 1, command_id: str = "c1", lease_id: str = "") -> Job:
    """A lease of a command."""
    lease_id = lease_id or f"l{attempt}"
    text = LEASE % (lease_id, command_id, attempt, command_id, attempt)
    return Job(
        lease=decode(text.encode(), LeaseInfo),
        lease_url="https://server",
        asked_at=0.0,
        seconds=60.0,
        deadline_at=None,
        directory=Path("/nowhere"),
    )


async def end_of(step: Awaitable[None]) -> Outcome | None:
    """The outcome that a step raises; None when it is not the last."""
    try:
        await step
    except Ended as end:
        return end.outcome
    return None


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    with DataDir(tmp_path) as data_dir:
        opened = await Spool.open(data_dir, SpoolSection(min_free_bytes=0))
        yield opened
        await opened.close()


@pytest.fixture
def journal(spool: Spool) -> RunJournal:
    return RunJournal(spool)


async def put(spool: Spool, command_id: str = "c1", lease_id: str = "l1") -> Entry:
    """A response of the command."""
    return await spool.put(
        command_id=command_id,
        lease_id=lease_id,
        command="pay",
        attempt=1,
        submit_url=None,
        upload=None,
        message=b"{}",
        body=None,
    )


def code(outcome: Any) -> str | None:
    """The code of a refusal, None when there is none."""
    return outcome.code if isinstance(outcome, Failed) else outcome


async def test_a_first_attempt_may_start_and_a_started_one_may_not_again(
    journal: RunJournal,
) -> None:
    assert await end_of(journal.hold(job(), WHERE)) is None
    assert await end_of(journal.start(job(), WHERE)) is None

    for attempt in (1, 2, 3):
        assert code(await end_of(journal.hold(job(attempt), WHERE))) == "MAYBE_EXECUTED"


async def test_what_is_known_to_have_only_been_held_here_may_start(journal: RunJournal) -> None:
    for attempt in (1, 1, 2, 3):  # a drain's release costs no attempt, a lapse does
        assert await end_of(journal.hold(job(attempt), WHERE)) is None

    assert code(await end_of(journal.hold(job(5), WHERE))) == "MAYBE_EXECUTED", "4 was elsewhere"


async def test_an_attempt_after_one_that_was_given_back_at_no_cost_may_have_run_elsewhere(
    journal: RunJournal,
) -> None:
    await journal.hold(job(), WHERE)
    await journal.given_back(job())

    assert code(await end_of(journal.hold(job(2), WHERE))) == "MAYBE_EXECUTED", "1 was elsewhere"
    assert await end_of(journal.hold(job(), WHERE)) is None, "nobody had it"
    assert await end_of(journal.hold(job(2), WHERE)) is None, "it was held here, and lapsed"


async def test_an_attempt_that_nothing_is_known_of_may_have_run_elsewhere(
    journal: RunJournal,
) -> None:
    assert code(await end_of(journal.hold(job(2), WHERE))) == "MAYBE_EXECUTED"


async def test_a_handler_that_asks_for_another_run_gets_it(journal: RunJournal) -> None:
    await journal.hold(job(), WHERE)
    await journal.start(job(), WHERE)

    await journal.may_run_again(job(), WHERE)

    assert await end_of(journal.hold(job(2), WHERE)) is None


async def test_a_run_is_answered_once_its_response_is_stored_and_gone_once_it_is_taken(
    journal: RunJournal, spool: Spool
) -> None:
    await journal.hold(job(), WHERE)
    await journal.start(job(), WHERE)
    entry = await put(spool)
    assert await journal.open(30) == [], "nothing is left to be answered"
    assert code(await end_of(journal.hold(job(2), WHERE))) == "MAYBE_EXECUTED"

    await spool.remove(entry)

    assert await spool.select("SELECT * FROM runs") == []


@pytest.mark.parametrize("end", ["remove", "bury"])
async def test_a_run_whose_response_nobody_took_is_remembered(
    journal: RunJournal, spool: Spool, end: str
) -> None:
    await journal.hold(job(), WHERE)
    await journal.start(job(), WHERE)
    entry = await put(spool)

    await (spool.remove(entry, is_taken=False) if end == "remove" else spool.bury(entry, "403"))

    assert code(await end_of(journal.hold(job(2), WHERE))) == "MAYBE_EXECUTED"


async def test_an_answer_under_another_lease_lets_no_run_be_forgotten(
    journal: RunJournal, spool: Spool
) -> None:
    await journal.hold(job(), WHERE)
    await journal.start(job(), WHERE)

    await spool.remove(await put(spool, lease_id="a-lie"))  # an envelope that could not be read

    assert code(await end_of(journal.hold(job(), WHERE))) == "MAYBE_EXECUTED"


async def test_what_a_dead_process_left_is_answered_under_its_lease(
    journal: RunJournal, spool: Spool
) -> None:
    await journal.hold(job(), WHERE)
    await journal.start(job(), WHERE)
    await asyncio.to_thread(journal.announce, job(1, "c2", "l2"), WHERE, {"rebooted": True})
    await journal.hold(job(1, "c3", "l3"), WHERE)

    told: list[list[str]] = []

    async def ended(command_ids: Sequence[str]) -> None:
        told.append(list(command_ids))

    assert await answer_left(RunJournal(spool), spool, 30, ended) == 2
    assert await answer_left(RunJournal(spool), spool, 30, ended) == 0
    assert told == [["c1", "c2"], ["c1", "c2"]], "before they are answered, and while they wait"

    entries = list(spool.entries())
    assert [(e.command_id, e.lease_id, e.submit_url) for e in entries] == [
        ("c1", "l1", WHERE.submit_url),
        ("c2", "l2", WHERE.submit_url),
    ]
    assert b"MAYBE_EXECUTED" in (await spool.message(entries[0]) or b"")
    assert b'"success"' in (await spool.message(entries[1]) or b"")


async def test_an_interrupted_run_is_not_given_back(journal: RunJournal) -> None:
    await journal.start(job(), WHERE)
    await asyncio.to_thread(journal.announce, job(1, "c2", "l2"), WHERE, None)
    drained = GivenBack("drain")

    assert code(journal.what_counts(job(), drained)) == "MAYBE_EXECUTED"
    assert journal.what_counts(job(1, "c2", "l2"), drained) == Succeeded(b"null")
    assert journal.what_counts(job(1, "c3", "l3"), drained) is drained, "it had not started"


@pytest.mark.parametrize("outcome", [Succeeded(b"1"), Failed("X", ""), Dropped("lost")])
async def test_any_other_end_stands(journal: RunJournal, outcome: Any) -> None:
    await journal.start(job(), WHERE)

    assert journal.what_counts(job(), outcome) is outcome


@pytest.mark.parametrize("result", [{1j}, "x" * MAX_ANNOUNCED_BYTES])
async def test_a_result_that_cannot_be_kept_is_refused(journal: RunJournal, result: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        journal.announce(job(), WHERE, result)

    assert await journal.open(30) == []


async def test_old_rows_are_forgotten_and_those_that_were_started_are_not(
    journal: RunJournal, spool: Spool
) -> None:
    await journal.hold(job(1, "held"), WHERE)
    await journal.start(job(1, "started"), WHERE)
    await spool.execute("UPDATE runs SET at = at - 86400 * 31")
    await journal.hold(job(1, "fresh"), WHERE)

    await journal.open(30)

    rows = await spool.select("SELECT command_id FROM runs ORDER BY rowid")
    assert rows == [("started",), ("fresh",)]


async def test_a_disk_that_takes_nothing_lets_nothing_start(
    journal: RunJournal, spool: Spool
) -> None:
    spool.failure = "disk I/O error"

    assert await end_of(journal.start(job(), WHERE)) == GivenBack("drain")
    assert await end_of(journal.hold(job(), WHERE)) == GivenBack("drain")


async def test_a_spool_of_before_the_journal_gets_its_table(tmp_path: Path) -> None:
    with DataDir(tmp_path) as data_dir:
        await (await Spool.open(data_dir, SpoolSection())).close()
        with sqlite3.connect(tmp_path / "spool.db") as old:
            for statement in ("TRIGGER runs_answered", "TRIGGER runs_taken", "TABLE runs"):
                old.execute(f"DROP {statement}")
        old.close()
        spool = await Spool.open(data_dir, SpoolSection())

        assert await end_of(RunJournal(spool).hold(job(), WHERE)) is None
        await spool.close()
