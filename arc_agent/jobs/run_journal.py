"""The run journal records which handlers were started here, so that none runs twice that must not.

A table in the spool's database. A row is durable before a handler starts that is not idempotent,
and turns to `answered` in the very transaction that stores its response (a trigger does it). It
goes when the server has taken the response, or after `handlers.journal_days`. A response under
another lease than the run's, as to an envelope that cannot be read, leaves the row alone.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
import structlog

from arc_agent.handlers.shapes import write
from arc_agent.jobs.job import ReplyTo
from arc_agent.jobs.outcome import NO_COST, Ended, Failed, GivenBack, Outcome, Succeeded
from arc_agent.jobs.responses import message_of
from arc_agent.jobs.spool import Spool
from arc_agent.jobs.spool_rows import encoded, executing
from arc_protocol.messages.bodies import PresignedRequest
from arc_runtime.failpoints import hit

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

MAYBE_EXECUTED: Final = "MAYBE_EXECUTED"
MAX_ROWS: Final = 100_000
MAX_ANNOUNCED_BYTES: Final = 64 * 1024
"""The size of the largest result that a handler may leave for after a restart."""
_HELD: Final = "held"
_GIVEN_BACK: Final = "given back"
"""Held, and released at no cost: another agent may have the same attempt meanwhile."""
_STARTED: Final = "started"
_NOTHING: Final = b"(nothing)"
_DAY_SECONDS: Final = 86_400.0

_PUT: Final = (
    "INSERT INTO runs (command_id, lease_id, attempt, command, state, submit_url, upload,"
    " announced, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (command_id) DO UPDATE SET"
    " lease_id = excluded.lease_id, attempt = excluded.attempt, state = excluded.state,"
    " submit_url = excluded.submit_url, upload = excluded.upload, announced = excluded.announced,"
    " at = excluded.at"
)
_STATE: Final = "SELECT state, attempt FROM runs WHERE command_id = ?"
_GIVE_BACK: Final = "UPDATE runs SET state = ? WHERE command_id = ? AND state = ?"
_FORGET: Final = (
    "DELETE FROM runs WHERE state <> 'started' AND (at < ? OR rowid <= (SELECT rowid"
    " FROM runs ORDER BY rowid DESC LIMIT 1 OFFSET ?))"
)
_UNENDED: Final = (
    "SELECT command_id, lease_id, attempt, command, submit_url, upload, announced"
    " FROM runs WHERE state = 'started' ORDER BY rowid"
)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run that an earlier process started and did not end."""

    to: ReplyTo
    announced: bytes | None
    """The result that its handler left because it was going to restart the agent."""

    def outcome(self) -> Failed | Succeeded:
        """Return what the sender gets."""
        if self.announced is not None:
            return Succeeded(self.announced)
        return Failed(
            MAYBE_EXECUTED,
            "the agent or its host went down while the handler ran; it is not run again, because a"
            " second run may do harm",
        )


class RunJournal:
    """The table. Lives in the main loop, but for `announce`. All its writes are durable."""

    def __init__(self, spool: Spool) -> None:
        """Use a table in the spool's database."""
        self._spool = spool
        self._started: dict[str, bytes | None] = {}
        """By lease, the runs that must not be repeated; with the result that was announced."""
        self._lock = threading.Lock()

    async def open(self, keep_days: float) -> list[Run]:
        """Forget old rows; return the runs that have no end. Raises sqlite3.Error."""
        oldest = time.time() - keep_days * _DAY_SECONDS

        def read(db: sqlite3.Connection) -> list[Run]:
            db.execute(_FORGET, (oldest, MAX_ROWS))
            return [_run(row) for row in db.execute(_UNENDED)]

        return await self._spool.run(read)

    async def hold(self, to: ReplyTo) -> None:
        """Record that a command is held and not started. Raises Ended when it may have run before.

        An attempt after the first follows a lapse or a release. Only a command that this journal
        knows to have been held here, and never started, is known not to have run.
        """

        def hold(db: sqlite3.Connection) -> str | None:
            row = db.execute(_STATE, (to.command_id,)).fetchone()
            if row is not None and row[0] not in (_HELD, _GIVEN_BACK):
                return "its handler was started here before"
            known = (1,) if row is None else _attempts_that_may_come(*row)
            if to.attempt not in known:
                return f"nothing is known here of attempt {to.attempt - 1}"
            db.execute(_PUT, _row(to, _HELD))
            return None

        try:
            why = await self._spool.run(hold)
        except sqlite3.Error as error:
            raise _not_recorded(to, error) from None
        if why is not None:
            raise _maybe_executed(to, why)

    async def given_back(self, command_id: str) -> None:
        """Record that a command is about to be released at no cost.

        Its next holder has the same attempt. Only if this attempt comes here again, no other agent
        has had the command. An earlier attempt may lapse elsewhere.
        """
        try:
            await self._spool.run(executing(_GIVE_BACK, _GIVEN_BACK, command_id, _HELD))
        except sqlite3.Error as error:
            log.error("journal.failed", command_id=command_id, reason=str(error))

    async def start(self, to: ReplyTo) -> None:
        """Record that a handler starts. Raises Ended when that fails: it does not start."""
        hit("agent.before_journal")
        try:
            await self._spool.run(executing(_PUT, *_row(to, _STARTED)))
        except sqlite3.Error as error:
            raise _not_recorded(to, error) from None
        hit("agent.after_journal")
        with self._lock:
            self._started[to.lease_id] = None

    async def may_run_again(self, to: ReplyTo) -> None:
        """Record that another run does no harm: the handler itself says so."""
        with self._lock:
            was_started = self._started.pop(to.lease_id, _NOTHING) is not _NOTHING
        if not was_started:
            return
        try:
            await self._spool.run(executing(_PUT, *_row(to, _HELD)))
        except sqlite3.Error as error:
            log.error(
                "journal.failed",
                command_id=to.command_id,
                reason=str(error),
                hint="the command will not be run again here",
            )

    def announce(
        self, to: ReplyTo, result: Any, seal: Callable[[bytes], bytes] | None = None
    ) -> None:
        """Keep a result for when the agent is back. Blocks; from any thread.

        `seal` encrypts it for the sender.

        Raises ValueError when it is too large or no JSON, sqlite3.Error.
        """
        data = write(result)
        if len(data) > MAX_ANNOUNCED_BYTES:
            raise ValueError(f"a result of {MAX_ANNOUNCED_BYTES} bytes at most can be left")
        data = data if seal is None else seal(data)
        self._spool.run_blocking(executing(_PUT, *_row(to, _STARTED, data)))
        with self._lock:
            self._started[to.lease_id] = data
        hit("agent.after_announce")

    def what_counts(self, lease_id: str, outcome: Outcome) -> Outcome:
        """Return how a run ends. One that was stopped in the middle is not given back."""
        with self._lock:
            announced = self._started.pop(lease_id, _NOTHING)
        if announced is _NOTHING or not isinstance(outcome, GivenBack):
            return outcome
        if announced is not None:
            return Succeeded(announced)
        return Failed(MAYBE_EXECUTED, "the agent was stopped while the handler ran")


def _attempts_that_may_come(state: str, attempt: int) -> tuple[int, ...]:
    """Return the attempts before which no other agent can have had a command held here."""
    return (attempt,) if state == _GIVEN_BACK else (attempt, attempt + 1)


def _run(row: tuple[Any, ...]) -> Run:
    """Return the run of a row, as `_UNENDED` reads it."""
    command_id, lease_id, attempt, command, submit_url, upload, announced = row
    return Run(
        to=ReplyTo(
            command_id=command_id,
            lease_id=lease_id,
            attempt=attempt,
            command=command,
            submit_url=submit_url,
            upload=None if upload is None else msgspec.json.decode(upload, type=PresignedRequest),
        ),
        announced=announced,
    )


def _row(to: ReplyTo, state: str, announced: bytes | None = None) -> tuple[object, ...]:
    """Return the values of a row, as `_PUT` writes it."""
    return (
        to.command_id,
        to.lease_id,
        to.attempt,
        to.command,
        state,
        to.submit_url,
        encoded(to.upload),
        announced,
        time.time(),
    )


def _maybe_executed(to: ReplyTo, why: str) -> Ended:
    """Return the end of a command that may have been executed before."""
    log.warning("command.maybe_executed", command_id=to.command_id, reason=why)
    return Ended(
        Failed(
            MAYBE_EXECUTED,
            f"it may have been executed before, and a second run may do harm: {why}",
        )
    )


def _not_recorded(to: ReplyTo, error: sqlite3.Error) -> Ended:
    """Return the end of a command that the disk did not record: it costs no attempt."""
    log.error("command.not_started", command_id=to.command_id, reason=f"journal: {error}")
    return Ended(GivenBack(NO_COST))


async def answer_left(
    journal: RunJournal,
    spool: Spool,
    keep_days: float,
    ended: Callable[[Sequence[str]], Awaitable[None]],
) -> int:
    """Answer the runs that an earlier process left; return how many. Raises sqlite3.Error.

    `ended` gets their ids first, and those of the responses that wait already: once a response is
    taken, no record here knows its command.
    """
    runs = await journal.open(keep_days)
    await ended([each.to.command_id for each in (*runs, *spool.entries())])
    for run in runs:
        await spool.put(run.to, message=message_of(run.outcome()))
        log.warning("command.was_running", command_id=run.to.command_id, command=run.to.command)
    return len(runs)
