"""The journal of what must not run twice: what it knows of a command, and what it forgets."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from arc_agent.host.data_dir import DataDir
from arc_agent.jobs.job import ReplyTo
from arc_agent.jobs.outcome import Dropped, Ended, Failed, GivenBack, Outcome, Succeeded
from arc_agent.jobs.run_journal import MAX_ANNOUNCED_BYTES, RunJournal, answer_left
from arc_agent.jobs.spool import Spool
from arc_agent.jobs.spool_rows import Entry
from tests.support.spools import opened_spool


def to(attempt: int = 1, command_id: str = "c1", lease_id: str = "") -> ReplyTo:
    """The address of a run's reply."""
    return ReplyTo(
        command_id=command_id,
        lease_id=lease_id or f"l{attempt}",
        command="pay",
        attempt=attempt,
        submit_url="https://server/response?lease=l",
    )


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    with DataDir(tmp_path) as data_dir:
        async with opened_spool(data_dir) as opened:
            yield opened


@pytest.fixture
def journal(spool: Spool) -> RunJournal:
    return RunJournal(spool)


async def put(spool: Spool, command_id: str = "c1", lease_id: str = "l1") -> Entry:
    """A response of the command."""
    return await spool.put(to(1, command_id, lease_id), message=b"{}")


async def end_of(step: Coroutine[Any, Any, None]) -> Outcome | None:
    """Return what a step ends a run with, None when the run goes on."""
    try:
        await step
    except Ended as end:
        return end.outcome
    return None


def code(outcome: Any) -> str | None:
    """The code of a refusal, None when there is none."""
    return outcome.code if isinstance(outcome, Failed) else outcome


async def test_a_first_attempt_may_start_and_a_started_one_may_not_again(
    journal: RunJournal,
) -> None:
    assert await end_of(journal.hold(to())) is None
    assert await end_of(journal.start(to())) is None

    for attempt in (1, 2, 3):
        assert code(await end_of(journal.hold(to(attempt)))) == "MAYBE_EXECUTED"


async def test_what_is_known_to_have_only_been_held_here_may_start(journal: RunJournal) -> None:
    for attempt in (1, 1, 2, 3):  # a drain's release costs no attempt, a lapse does
        assert await end_of(journal.hold(to(attempt))) is None

    assert code(await end_of(journal.hold(to(5)))) == "MAYBE_EXECUTED", "attempt 4 was elsewhere"


async def test_an_attempt_after_one_that_was_given_back_at_no_cost_may_have_run_elsewhere(
    journal: RunJournal,
) -> None:
    await journal.hold(to())
    await journal.given_back("c1")

    assert code(await end_of(journal.hold(to(2)))) == "MAYBE_EXECUTED", "another had attempt 1"
    assert await end_of(journal.hold(to())) is None, "no run was recorded"
    assert await end_of(journal.hold(to(2))) is None, "it was held here, and lapsed"


async def test_an_attempt_that_nothing_is_known_of_may_have_run_elsewhere(
    journal: RunJournal,
) -> None:
    assert code(await end_of(journal.hold(to(2)))) == "MAYBE_EXECUTED"


async def test_a_handler_that_asks_for_another_run_gets_it(journal: RunJournal) -> None:
    await journal.hold(to())
    await journal.start(to())

    await journal.may_run_again(to())

    assert await end_of(journal.hold(to(2))) is None


async def test_a_run_is_answered_once_its_response_is_stored_and_gone_once_it_is_taken(
    journal: RunJournal, spool: Spool
) -> None:
    await journal.hold(to())
    await journal.start(to())
    entry = await put(spool)
    assert await journal.open(30) == [], "nothing is left to be answered"
    assert code(await end_of(journal.hold(to(2)))) == "MAYBE_EXECUTED"

    await spool.remove(entry)

    assert await spool.select("SELECT * FROM runs") == []


@pytest.mark.parametrize("end", ["remove", "bury"])
async def test_a_run_whose_response_nobody_took_is_remembered(
    journal: RunJournal, spool: Spool, end: str
) -> None:
    await journal.hold(to())
    await journal.start(to())
    entry = await put(spool)

    await (spool.remove(entry, is_taken=False) if end == "remove" else spool.bury(entry, "403"))

    assert code(await end_of(journal.hold(to(2)))) == "MAYBE_EXECUTED"


async def test_an_answer_under_another_lease_lets_no_run_be_forgotten(
    journal: RunJournal, spool: Spool
) -> None:
    await journal.hold(to())
    await journal.start(to())

    await spool.remove(await put(spool, lease_id="a-lie"))  # an envelope that could not be read

    assert code(await end_of(journal.hold(to()))) == "MAYBE_EXECUTED"


async def test_what_a_dead_process_left_is_answered_under_its_lease(
    journal: RunJournal, spool: Spool
) -> None:
    await journal.hold(to())
    await journal.start(to())
    await asyncio.to_thread(journal.announce, to(1, "c2", "l2"), {"rebooted": True})
    await journal.hold(to(1, "c3", "l3"))

    told: list[list[str]] = []

    async def ended(command_ids: Sequence[str]) -> None:
        told.append(list(command_ids))

    assert await answer_left(RunJournal(spool), spool, 30, ended) == 2
    assert await answer_left(RunJournal(spool), spool, 30, ended) == 0
    assert told == [["c1", "c2"], ["c1", "c2"]], "before they are answered, and while they wait"

    entries = list(spool.entries())
    assert [(e.to.command_id, e.to.lease_id) for e in entries] == [
        ("c1", "l1"),
        ("c2", "l2"),
    ]
    first, second = await spool.messages(entries)
    assert b"MAYBE_EXECUTED" in (first or b"")
    assert b'"success"' in (second or b"")


async def test_an_interrupted_run_is_not_given_back(journal: RunJournal) -> None:
    await journal.start(to())
    await asyncio.to_thread(journal.announce, to(1, "c2", "l2"), None)
    drained = GivenBack("drain")

    assert code(journal.what_counts("l1", drained)) == "MAYBE_EXECUTED"
    assert journal.what_counts("l2", drained) == Succeeded(b"null")
    assert journal.what_counts("l3", drained) is drained, "it had not started"


@pytest.mark.parametrize("outcome", [Succeeded(b"1"), Failed("X", ""), Dropped("lost")])
async def test_any_other_end_stands(journal: RunJournal, outcome: Any) -> None:
    await journal.start(to())

    assert journal.what_counts("l1", outcome) is outcome


@pytest.mark.parametrize("result", [{1j}, "x" * MAX_ANNOUNCED_BYTES])
async def test_a_result_that_cannot_be_kept_is_refused(journal: RunJournal, result: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        journal.announce(to(), result)

    assert await journal.open(30) == []


async def test_old_rows_are_forgotten_and_those_that_were_started_are_not(
    journal: RunJournal, spool: Spool
) -> None:
    await journal.hold(to(1, "held"))
    await journal.start(to(1, "started"))
    await spool.select("UPDATE runs SET at = at - 86400 * 31")
    await journal.hold(to(1, "fresh"))

    await journal.open(30)

    rows = await spool.select("SELECT command_id FROM runs ORDER BY rowid")
    assert rows == [("started",), ("fresh",)]


async def test_a_disk_that_takes_nothing_lets_nothing_start(
    journal: RunJournal, spool: Spool
) -> None:
    def fail(_: sqlite3.Connection) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    with pytest.raises(sqlite3.OperationalError):
        await spool.run(fail)

    assert await end_of(journal.start(to())) == GivenBack("drain")
    assert await end_of(journal.hold(to())) == GivenBack("drain")


async def test_a_spool_of_before_the_journal_gets_its_table(tmp_path: Path) -> None:
    with DataDir(tmp_path) as data_dir:
        async with opened_spool(data_dir):
            pass
        with sqlite3.connect(tmp_path / "spool.db") as old:
            for statement in ("TRIGGER runs_answered", "TRIGGER runs_taken", "TABLE runs"):
                old.execute(f"DROP {statement}")
        old.close()
        async with opened_spool(data_dir) as spool:
            assert await end_of(RunJournal(spool).hold(to())) is None
