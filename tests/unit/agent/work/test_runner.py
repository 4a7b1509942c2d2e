"""The runner and its steps: each step may be a command's last, and places are freed at the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from arc_agent import Context, Retry, handler
from arc_agent.guard.gate import Gate
from arc_agent.guard.sealed_params import HostSeals
from arc_agent.guard.signatures import Signatures
from arc_agent.guard.turns import KeyedTurns, Turns
from arc_agent.host.clock import boot_seconds
from arc_agent.host.data_dir import DataDir
from arc_agent.host.process_state import ProcessState
from arc_agent.jobs.lease_table import End, LeaseTable
from arc_agent.jobs.outcome import Outcome
from arc_agent.jobs.responses import name_of
from arc_agent.jobs.run_journal import RunJournal
from arc_agent.jobs.spool import Spool
from arc_agent.jobs.spool_database import SpoolError
from arc_agent.net.connection import ServerConnection
from arc_agent.net.server import Server
from arc_agent.net.server_state import ServerState
from arc_agent.net.transfer import Transfer
from arc_agent.work.event_sender import EventSender
from arc_agent.work.run_steps import RunSteps
from arc_agent.work.runner import Runner
from tests.support.leases import job, live_config
from tests.support.spools import opened_spool
from tests.support.waiting import until


class Ends:
    """A meter that keeps what it is told."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[str, Outcome, bool]] = []

    def ended(self, command: str, outcome: Outcome, *, is_known: bool) -> None:
        self.outcomes.append((command, outcome, is_known))

    def handled(self, command: str, seconds: float) -> None: ...

    def renewed(self, count: int) -> None: ...

    def polled(self, seconds: float, *, is_held: bool) -> None: ...


class Rig:
    """A runner with all its parts, and a server that is out of reach."""

    def __init__(self, tmp_path: Path, spool: Spool, functions: Any, settings: Any) -> None:
        settings = {"max_concurrent": 2, "handlers": {"grace_seconds": 0.01}, **settings}
        live = self.live = live_config(tmp_path, *functions, **settings)
        self.spool, self.leases, self.ends = spool, LeaseTable(), Ends()
        self._directory = tmp_path
        server = Server(
            ServerConnection(live.config.server, live.token, live.network),
            Transfer(live.config.transfer, live.config.server, live.network),
            ServerState(boot_seconds),
        )
        self.slots = Turns(lambda: 2 - self.runner.abandoned, lambda: self.runner.wake())
        self.gate = Gate(live=live, audit=None, slots=self.slots, clock=boot_seconds)
        self.turns = KeyedTurns(
            limit_of=live.concurrency_of, slots=self.slots, max_waiting=lambda: 1
        )
        signatures = Signatures(
            live=live, directory=tmp_path, on_refused=self.gate.log_bad_signature
        )
        journal = RunJournal(spool)
        shared: dict[str, Any] = {
            "live": live,
            "server": server,
            "spool": spool,
            "journal": journal,
            "gate": self.gate,
            "signatures": signatures,
            "handler_turns": self.turns,
            "meter": self.ends,
            "clock": boot_seconds,
        }
        steps = RunSteps(
            seals=HostSeals(live=live, data_dir=spool.data_dir, has_room=spool.has_room),
            event_sender=EventSender(live=live, server=server),
            process=ProcessState(),
            **shared,
        )
        self.runner = Runner(steps=steps, leases=self.leases, slots=self.slots, **shared)
        self.group: asyncio.TaskGroup

    def start(self, command: str, number: int = 1, **fields: Any) -> None:
        """Take a lease on."""
        of = job(
            command,
            command_id=f"cmd_{number}",
            lease_id=f"lease_{number}",
            asked_at=boot_seconds(),
            directory=self._directory / f"run-{number}",
            **fields,
        )
        self.runner.start(self.group, of)

    async def outcome(self, command: str, number: int = 1, **fields: Any) -> str:
        """The name of a run's outcome."""
        self.start(command, number, **fields)
        await self.runner.idle()
        return name_of(self.ends.outcomes[-1][1])

    @property
    def spooled(self) -> list[str]:
        """The commands whose responses wait."""
        return [entry.to.command_id for entry in self.spool.entries()]


@asynccontextmanager
async def rig(tmp_path: Path, *functions: Any, **settings: Any) -> AsyncGenerator[Rig]:
    """A runner with some handlers."""
    live = live_config(tmp_path)
    with DataDir(tmp_path / "data") as data_dir:
        async with opened_spool(data_dir, live.config.spool) as spool, asyncio.TaskGroup() as group:
            made = Rig(tmp_path, spool, functions, settings)
            made.group = group
            yield made


@handler("adds")
async def adds(params: dict[str, int]) -> int:
    return params["a"] + 1


class Held:
    """A handler that waits until it may go on."""

    def __init__(self, **options: Any) -> None:
        self.begun = asyncio.Semaphore(0)
        self.go_on = asyncio.Event()

        @handler("waits", **options)
        async def waits() -> None:
            self.begun.release()
            await self.go_on.wait()

        self.function = waits


async def test_a_run_ends_with_its_response_in_the_spool(tmp_path: Path) -> None:
    async with rig(tmp_path, adds) as made:
        assert await made.outcome("adds", params=b'{"a": 1}') == "succeeded"

        assert made.spooled == ["cmd_1"]
        assert await made.spool.messages(made.spool.entries()) == [
            b'{"status":"success","response":{"mode":"inline","inlineBase64":"Mg=="}}'
        ]
        lease = made.leases.get("lease_1")
        assert lease is not None
        assert lease.has_result
        assert (made.runner.running, made.runner.done, made.runner.free) == (0, 1, 2)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"command": "unknown"}, "UNKNOWN_COMMAND"),
        ({"command": "adds", "deploymentId": "other"}, "INVALID_ENVELOPE"),
        ({"command": "adds", "protocol": "arc.v9"}, "INVALID_ENVELOPE"),
        ({"command": "adds", "params": b"no json"}, "INVALID_PARAMS"),
        ({"command": "adds", "params": {"mode": "storage", "size": 3}}, "INVALID_ENVELOPE"),
        ({"command": "adds", "params": b'{"b": 1}'}, "HANDLER_ERROR"),
    ],
)
async def test_each_step_may_be_the_last(tmp_path: Path, fields: dict[str, Any], code: str) -> None:
    async with rig(tmp_path, adds) as made:
        assert await made.outcome(**fields) == code
        assert made.spooled == ["cmd_1"]
        assert made.ends.outcomes[0][2] is (fields["command"] == "adds")


async def test_an_envelope_whose_url_is_forbidden_is_answered_with_the_token(
    tmp_path: Path,
) -> None:
    handling: dict[str, Any] = {
        "maxInlineBytes": 10,
        "submitResponseUrl": "http://169.254.169.254/response",
        "storageUploadRequest": {
            "backend": {"type": "http", "url": "/b", "method": "PUT", "headers": {}},
            "expiration": "2026-11-24T10:00:00Z",
            "operation": "put",
            "path": "p",
        },
    }
    async with rig(tmp_path, adds) as made:
        assert await made.outcome("adds", responseHandling=handling) == "INVALID_ENVELOPE"
        assert made.spool.entries()[0].to.submit_url is None


async def test_a_handler_that_may_not_run_twice_is_journalled_first(tmp_path: Path) -> None:
    @handler("pays", idempotent=False)
    async def pays() -> None: ...

    async with rig(tmp_path, pays) as made:
        assert await made.outcome("pays", 1) == "succeeded"
        assert await made.outcome("pays", 2, attempt=2) == "MAYBE_EXECUTED"


async def test_a_handler_s_own_limit_lets_others_run_meanwhile(tmp_path: Path) -> None:
    held = Held(concurrency=1)
    async with rig(tmp_path, held.function, adds) as made:
        made.start("waits", 1)
        await held.begun.acquire()
        made.start("waits", 2)
        await until(lambda: made.turns.is_waiting("lease_2"))
        assert made.runner.free == 0, "so many wait that no more is asked for"

        made.start("adds", 3, params=b'{"a": 1}')
        await until(lambda: made.runner.done > 0)
        assert made.spooled == ["cmd_3"]
        held.go_on.set()
        await made.runner.idle()

        assert sorted(made.spooled) == ["cmd_1", "cmd_2", "cmd_3"]
        assert made.runner.free == 2


async def test_drain_releases_what_has_not_begun_and_waits_for_the_rest(tmp_path: Path) -> None:
    held = Held(concurrency=1)
    async with rig(tmp_path, held.function) as made:
        made.start("waits", 1)
        await held.begun.acquire()
        made.start("waits", 2)
        await until(lambda: made.turns.is_waiting("lease_2"))
        draining = asyncio.create_task(made.runner.drain(60))
        await until(lambda: made.runner.running <= 1)
        held.go_on.set()
        await draining

        assert made.spooled == ["cmd_1"]
        assert made.leases.get("lease_2") is None


async def test_drain_stops_what_takes_too_long(tmp_path: Path) -> None:
    held = Held()
    async with rig(tmp_path, held.function) as made:
        made.start("waits")
        await held.begun.acquire()
        with structlog.testing.capture_logs() as events:
            await made.runner.drain(0)

        assert "drain.stopping" in [event["event"] for event in events]
        assert made.spooled == []


async def test_halt_answers_what_ran_and_gives_back_what_did_not(tmp_path: Path) -> None:
    held = Held(concurrency=1)
    async with rig(tmp_path, held.function) as made:
        made.start("waits", 1)
        await held.begun.acquire()
        made.start("waits", 2)
        await until(lambda: made.turns.is_waiting("lease_2"))

        assert made.runner.halt() == 1
        await made.runner.idle()

        names = {name_of(outcome) for _, outcome, _ in made.ends.outcomes}
        assert names == {"STOPPED_BY_HOST", "givenback"}
        assert made.spooled == ["cmd_1"]


async def test_a_lease_that_was_lost_is_dropped(tmp_path: Path) -> None:
    held = Held()
    async with rig(tmp_path, held.function) as made:
        made.start("waits")
        await held.begun.acquire()
        lease = made.leases.get("lease_1")
        assert lease is not None
        lease.stop(End.LOST)
        await made.runner.idle()

        assert name_of(made.ends.outcomes[0][1]) == "dropped"
        assert (made.spooled, made.leases.all()) == ([], [])


async def test_an_abandoned_handler_keeps_its_slot_until_it_ends(tmp_path: Path) -> None:
    go_on = threading.Event()
    begun = threading.Event()

    @handler("ignores")
    def ignores() -> None:
        begun.set()
        go_on.wait(20)

    async with rig(tmp_path, ignores) as made:
        made.start("ignores")
        await asyncio.to_thread(begun.wait, 20)
        lease = made.leases.get("lease_1")
        assert lease is not None
        lease.stop(End.CANCELLED)
        await made.runner.idle()
        assert (made.runner.abandoned, made.runner.free) == (1, 1)
        assert name_of(made.ends.outcomes[0][1]) == "CANCELLED"

        waiting = asyncio.create_task(made.runner.slot())
        go_on.set()
        await waiting
        await until(lambda: not made.runner.abandoned)
        assert made.runner.free == 2


async def test_a_run_s_directory_is_gone_after_it(tmp_path: Path) -> None:
    @handler("writes")
    def writes(ctx: Context) -> None:
        (ctx.directory / "file").write_text("x")

    async with rig(tmp_path, writes) as made:
        assert await made.outcome("writes") == "succeeded"
        assert not (tmp_path / "run-1").exists()


@pytest.mark.parametrize(
    ("after", "deadline_seconds", "name"),
    [
        (0.01, None, "givenback"),
        (600, 300, "RETRIES_EXHAUSTED"),
    ],
)
async def test_a_retry_is_put_off_or_used_up(
    tmp_path: Path, after: float, deadline_seconds: float | None, name: str
) -> None:
    @handler("later")
    async def later() -> None:
        raise Retry("not yet", after=after)

    seconds = deadline_seconds
    fields = {} if seconds is None else {"deadline_at": boot_seconds() + seconds}
    async with rig(tmp_path, later) as made:
        assert await made.outcome("later", **fields) == name


async def test_a_retry_gives_its_slot_away_until_too_many_wait(tmp_path: Path) -> None:
    @handler("later")
    async def later() -> None:
        raise Retry(after=600)

    async with rig(tmp_path, later) as made:
        made.start("later", 1)
        await until(lambda: made.turns.is_waiting("lease_1"))
        made.start("later", 2)
        await until(lambda: made.runner.done > 0)
        assert name_of(made.ends.outcomes[0][1]) == "givenback"
        await made.runner.drain(0)


async def test_a_run_that_breaks_lets_its_lease_lapse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise SpoolError("the disk is gone")

    async with rig(tmp_path, adds) as made:
        monkeypatch.setattr(made.spool, "put", broken)
        with structlog.testing.capture_logs() as events:
            assert await made.outcome("adds", params=b'{"a": 1}') == "dropped"

        assert "command.broken" in [event["event"] for event in events]
        assert made.leases.all() == []
        assert made.runner.free == 2
