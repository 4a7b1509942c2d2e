"""Which commands' handlers were started here: so that none that must not run twice does.

A table in the spool's database. A row is durable before a handler starts that is not idempotent,
and turns to `answered` in the very transaction that stores its response (a trigger does it). It
goes when the server has taken the response, or after `handlers.journal_days`. A response under
another lease than the run's, as to an envelope that cannot be read, is not the run's: it stays.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from typing import Any, Final

import msgspec
import structlog

from arc_agent.handlers.shapes import write
from arc_agent.jobs.job import Addresses, Job
from arc_agent.jobs.outcome import NO_COST, Ended, Failed, GivenBack, Outcome, Succeeded
from arc_agent.jobs.responses import message_of
from arc_agent.jobs.spool import Spool
from arc_protocol.messages.bodies import PresignedRequest
from arc_runtime.failpoints import hit

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

MAYBE_EXECUTED: Final = "MAYBE_EXECUTED"
MAX_ROWS: Final = 100_000
MAX_ANNOUNCED_BYTES: Final = 64 * 1024
"""The largest result that a handler may leave for after a restart."""
_HELD: Final = "held"
_GIVEN_BACK: Final = "given back"
"""Held, and released at no cost: the same attempt may be another's meanwhile."""
_STARTED: Final = "started"
_NOTHING: Final = b"(nothing)"
_DAY_SECONDS: Final = 86_400.0
_BUSY_SECONDS: Final = 5.0

_PUT: Final = (
    "INSERT INTO runs (command_id, lease_id, attempt, command, state, submit_url, upload,"
    " announced, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (command_id) DO UPDATE SET"
    " lease_id = excluded.lease_id, attempt = excluded.attempt, state = excluded.state,"
    " submit_url = excluded.submit_url, upload = excluded.upload, announced = excluded.announced,"
    " at = excluded.at"
)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run that an earlier process has started and not ended."""

    command_id: str
    lease_id: str
    attempt: int
    command: str
    submit_url: str | None
    upload: PresignedRequest | None
    announced: bytes | None
    """What the command is answered with when its handler said that it would restart the agent."""

    def outcome(self) -> Failed | Succeeded:
        """What the sender is told."""
        if self.announced is not None:
            return Succeeded(self.announced)
        return Failed(
            MAYBE_EXECUTED, "the agent or its host went down while the handler ran; it is not"
            " run again, because a second run may do harm",
        )  # fmt: skip


class RunJournal:
    """The table. Lives in the main loop, but for `announce`. All its writes are durable."""

    def __init__(self, spool: Spool) -> None:
        """The table is in the spool's database."""
        self._spool = spool
        self._started: dict[str, bytes | None] = {}
        """What runs now and must not be run again, by lease; with what is announced."""
        self._lock = threading.Lock()

    async def open(self, keep_days: float) -> list[Run]:
        """Forget what is old; the runs that nobody has ended. Raises sqlite3.Error."""
        await self._spool.execute(
            "DELETE FROM runs WHERE state <> 'started' AND (at < ? OR rowid <= (SELECT rowid"
            " FROM runs ORDER BY rowid DESC LIMIT 1 OFFSET ?))",
            (time.time() - keep_days * _DAY_SECONDS, MAX_ROWS),
        )
        rows = await self._spool.select(
            "SELECT command_id, lease_id, attempt, command, submit_url, upload, announced"
            " FROM runs WHERE state = 'started' ORDER BY rowid"
        )
        return [_run(row) for row in rows]

    async def hold(self, job: Job, where: Addresses) -> None:
        """Record that a command is held and not started. Raises Ended when it may have been.

        An attempt after the first follows a lapse or a release. Only what this journal knows to
        have been held here, and never started, is known not to have run.
        """
        lease = job.lease
        try:
            rows = await self._spool.select(
                "SELECT state, attempt FROM runs WHERE command_id = ?", (lease.command_id,)
            )
            if rows and rows[0][0] not in (_HELD, _GIVEN_BACK):
                raise _maybe(job, "its handler was started here before")
            known = _attempts_that_may_come(*rows[0]) if rows else (1,)
            if lease.attempt not in known:
                raise _maybe(job, f"nothing is known here of attempt {lease.attempt - 1}")
            await self._spool.execute(_PUT, _row(job, where, _HELD))
        except sqlite3.Error as error:
            raise _not_recorded(job, error) from None

    async def given_back(self, job: Job) -> None:
        """A command is about to be released at no cost: whoever gets it next has this attempt.

        Only if this attempt comes again has nobody had it. An earlier one may lapse elsewhere.
        """
        try:
            await self._spool.execute(
                "UPDATE runs SET state = ? WHERE command_id = ? AND state = ?",
                (_GIVEN_BACK, job.lease.command_id, _HELD),
            )
        except sqlite3.Error as error:
            log.error("journal.failed", command_id=job.lease.command_id, reason=str(error))

    async def start(self, job: Job, where: Addresses) -> None:
        """Record that a handler starts. Raises Ended when that fails: it does not start."""
        hit("agent.before_journal")
        try:
            await self._spool.execute(_PUT, _row(job, where, _STARTED))
        except sqlite3.Error as error:
            raise _not_recorded(job, error) from None
        hit("agent.after_journal")
        with self._lock:
            self._started[job.lease.lease_id] = None

    async def may_run_again(self, job: Job, where: Addresses) -> None:
        """The handler itself says that another run does no harm."""
        with self._lock:
            was_started = self._started.pop(job.lease.lease_id, _NOTHING) is not _NOTHING
        if not was_started:
            return
        try:
            await self._spool.execute(_PUT, _row(job, where, _HELD))
        except sqlite3.Error as error:
            log.error(
                "journal.failed",
                command_id=job.lease.command_id,
                reason=str(error),
                hint="the command will not be run again here",
            )

    def announce(
        self,
        job: Job,
        where: Addresses,
        result: Any,
        seal: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """Keep a result for when the agent is back. Blocks; from any thread.

        `seal`: what makes of it what only the sender can read.

        Raises ValueError when it is too large or no JSON, sqlite3.Error.
        """
        data = write(result)
        if len(data) > MAX_ANNOUNCED_BYTES:
            raise ValueError(f"a result of {MAX_ANNOUNCED_BYTES} bytes at most can be left")
        data = data if seal is None else seal(data)
        with closing(
            sqlite3.connect(self._spool.path, timeout=_BUSY_SECONDS, isolation_level=None)
        ) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(_PUT, _row(job, where, _STARTED, data))
        with self._lock:
            self._started[job.lease.lease_id] = data
        hit("agent.after_announce")

    def what_counts(self, job: Job, outcome: Outcome) -> Outcome:
        """What becomes of a run that was stopped in the middle, when it must not be run again."""
        with self._lock:
            announced = self._started.pop(job.lease.lease_id, _NOTHING)
        if announced is _NOTHING or not isinstance(outcome, GivenBack):
            return outcome
        if announced is not None:
            return Succeeded(announced)
        return Failed(MAYBE_EXECUTED, "the agent was stopped while the handler ran")


def _attempts_that_may_come(state: str, attempt: int) -> tuple[int, ...]:
    """Those before which nobody else can have had a command that was held here at `attempt`."""
    return (attempt,) if state == _GIVEN_BACK else (attempt, attempt + 1)


def _run(row: tuple[Any, ...]) -> Run:
    """A row that nobody has ended."""
    upload = None if row[5] is None else msgspec.json.decode(row[5], type=PresignedRequest)
    return Run(
        command_id=row[0],
        lease_id=row[1],
        attempt=row[2],
        command=row[3],
        submit_url=row[4],
        upload=upload,
        announced=row[6],
    )


def _row(
    job: Job, where: Addresses, state: str, announced: bytes | None = None
) -> tuple[object, ...]:
    """The values of a row."""
    return (
        job.lease.command_id,
        job.lease.lease_id,
        job.lease.attempt,
        job.lease.envelope.command,
        state,
        where.submit_url,
        None if where.upload is None else msgspec.json.encode(where.upload),
        announced,
        time.time(),
    )


def _maybe(job: Job, why: str) -> Ended:
    """Return the end of a command that may have been executed before."""
    log.warning("command.maybe_executed", command_id=job.lease.command_id, reason=why)
    return Ended(
        Failed(
            MAYBE_EXECUTED,
            f"it may have been executed before, and a second run may do harm: {why}",
        )
    )


def _not_recorded(job: Job, error: sqlite3.Error) -> Ended:
    """Return the end of a command that the disk did not record: it costs no attempt."""
    log.error("command.not_started", command_id=job.lease.command_id, reason=f"journal: {error}")
    return Ended(GivenBack(NO_COST))


async def answer_left(
    journal: RunJournal,
    spool: Spool,
    keep_days: float,
    ended: Callable[[Sequence[str]], Awaitable[None]],
) -> int:
    """Answer what an earlier process left unended; how many that were. Raises sqlite3.Error.

    `ended` is told first, of them and of those whose responses wait already: once a response is
    taken, nothing here knows its command any more.
    """
    runs = await journal.open(keep_days)
    await ended([each.command_id for each in (*runs, *spool.entries())])
    for run in runs:
        outcome = run.outcome()
        await spool.put(
            command_id=run.command_id,
            lease_id=run.lease_id,
            command=run.command,
            attempt=run.attempt,
            submit_url=run.submit_url,
            upload=run.upload,
            message=message_of(outcome),
            body=None,
        )
        log.warning("command.was_running", command_id=run.command_id, command=run.command)
    return len(runs)
