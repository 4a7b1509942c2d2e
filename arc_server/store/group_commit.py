"""Group commit: all operations that wait run in one transaction, and are answered after its commit.

Statements run on the event loop's thread; what waits for the disk or takes long goes into the
connection's thread. (All statements there would cost two hand-overs of the GIL each; measured in
docs/performance.md.) The two threads never use the connection at the same time.

Every operation is all or nothing by itself. One that fails in the middle has its whole batch rolled
back, and each of the batch then runs again in a transaction of its own.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import structlog

from arc_protocol.errors import ArcError, StoreUnavailable
from arc_runtime.failpoints import hit
from arc_server.store import faults
from arc_server.store.session import Session
from arc_server.store.worker import Worker

T = TypeVar("T")
log = structlog.get_logger(__name__)


class _Operation:
    """What is to run, and who waits for its answer."""

    __slots__ = ("answer", "args", "error", "function", "future", "is_long")

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        future: asyncio.Future[Any],
        is_long: bool,
    ) -> None:
        self.function = function
        self.args = args
        self.future = future
        self.is_long = is_long
        self.answer: Any = None
        self.error: Exception | None = None


class _Undone(Exception):
    """An operation failed after it had written: the transaction must go. `args`: (its error,)."""


class GroupCommit:
    """The only writer of a database. `run` is to be a task of its owner."""

    def __init__(
        self,
        worker: Worker,
        session: Session,
        *,
        max_batch: int,
        busy_timeout_seconds: float,
        runs_inline: bool = True,
    ) -> None:
        self._worker = worker
        self._connection: Final = session.connection
        self._db = session
        self._max_batch = max_batch
        self._busy_timeout_ms = round(busy_timeout_seconds * 1000)
        self._runs_inline = runs_inline
        self._waiting: deque[_Operation] = deque()
        self._arrived = asyncio.Event()
        self._is_closing = False
        self.failed = asyncio.Event()
        """Set when a commit has left doubt: nothing is committed any more, the process must end."""
        self.reason = ""
        """Why `failed` is set."""

    def submit(
        self, function: Callable[..., T], *args: Any, is_long: bool = False
    ) -> asyncio.Future[T]:
        """Queue `function(session, *args)`; `is_long`: more than a few dozen rows.

        The future raises what the function raises, or StoreUnavailable. Cancelling it takes the
        operation back only if it has not begun; it may be committed all the same.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if self._is_closing or self.failed.is_set():
            future.set_exception(StoreUnavailable(self.reason or "the store is closed"))
            return future
        self._waiting.append(_Operation(function, args, future, is_long))
        self._arrived.set()
        return future

    async def run(self) -> None:
        """Commit batch after batch, until `close`."""
        while True:
            while not self._waiting:
                if self._is_closing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
            batch = self._take()
            try:
                await self._commit(batch)
            except Exception as error:
                log.exception("store.batch_failed", operations=len(batch))
                self._give_up(faults.name_of(error))
                self._refuse(batch, error)

    def close(self) -> None:
        """Take no more; `run` ends when all that waits is committed."""
        self._is_closing = True
        self._arrived.set()

    def _take(self) -> list[_Operation]:
        batch: list[_Operation] = []
        while self._waiting and len(batch) < self._max_batch:
            operation = self._waiting.popleft()
            if not operation.future.done():
                batch.append(operation)
        return batch

    async def _commit(self, batch: Sequence[_Operation]) -> None:
        """Run, commit and answer a batch; nothing is left open behind it."""
        if self.failed.is_set():
            self._refuse(batch, StoreUnavailable(self.reason))
            return
        try:
            await self._begin()
            if self._runs_inline and not any(operation.is_long for operation in batch):
                has_written = self._perform(batch)
            else:
                has_written = await self._worker.run(self._perform, batch)
        except _Undone as undone:
            self._roll_back()
            if len(batch) == 1:
                batch[0].error = undone.args[0]
                self._answer(batch)
            else:
                await self._commit_each(batch)
            return
        except (sqlite3.Error, OSError) as error:
            self._roll_back()
            if faults.is_failed_fsync(error):
                self._give_up(faults.name_of(error))
            self._refuse(batch, error)
            return
        try:
            if has_written:
                await self._worker.run(self._end)
            else:
                self._end()
        except (sqlite3.Error, OSError) as error:
            if faults.leaves_doubt(error):
                self._give_up(faults.name_of(error))
            self._roll_back()
            self._refuse(batch, error)
            return
        self._answer(batch)

    async def _begin(self) -> None:
        hit("store.before_begin")
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if faults.code_of(error) != sqlite3.SQLITE_BUSY:
                raise
            await self._worker.run(self._begin_patiently)
        self._db.notice_others()
        hit("store.after_begin")

    def _begin_patiently(self) -> None:
        """Another process is writing: wait, but not on the event loop's thread."""
        self._connection.execute(f"PRAGMA busy_timeout = {self._busy_timeout_ms}")
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        finally:
            self._connection.execute("PRAGMA busy_timeout = 0")

    def _perform(self, batch: Sequence[_Operation]) -> bool:
        """Run the operations of a batch; whether anything was written.

        Raises _Undone when one has failed in the middle, and what is_of_the_batch.
        """
        connection = self._connection
        start = changes = connection.total_changes
        for operation in batch:
            operation.error = None
            try:
                operation.answer = operation.function(self._db, *operation.args)
            except Exception as error:
                if faults.is_of_the_batch(error):
                    raise
                operation.error = _told(error)
                if connection.total_changes != changes or not connection.in_transaction:
                    raise _Undone(operation.error) from error
            changes = connection.total_changes
            hit("store.after_operation")
        return changes != start

    def _end(self) -> None:
        hit("store.before_commit")
        self._connection.execute("COMMIT")
        hit("store.after_commit")

    async def _commit_each(self, batch: Sequence[_Operation]) -> None:
        for operation in batch:
            await self._commit((operation,))

    def _roll_back(self) -> None:
        self._db.forget()
        if not self._connection.in_transaction:
            return
        try:
            self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            self._give_up(f"ROLLBACK failed: {faults.name_of(error)}")

    def _give_up(self, reason: str) -> None:
        """Nobody knows what is on the disk: commit nothing any more."""
        if self.failed.is_set():
            return
        log.critical("store.failed", reason=reason)
        self.reason = f"the database has failed and must be opened anew: {reason}"
        self.failed.set()

    def _answer(self, batch: Sequence[_Operation]) -> None:
        hit("store.before_answer")
        for operation in batch:
            future = operation.future
            if future.done():
                continue
            if operation.error is None:
                future.set_result(operation.answer)
            else:
                future.set_exception(operation.error)

    def _refuse(self, batch: Sequence[_Operation], error: Exception) -> None:
        for operation in batch:
            if not operation.future.done():
                operation.future.set_exception(faults.unavailable(error))


def _told(error: Exception) -> Exception:
    """What the caller of a failed operation hears."""
    if isinstance(error, ArcError) or not isinstance(error, sqlite3.Error):
        return error
    log.error("store.operation_failed", reason=faults.name_of(error))
    return faults.unavailable(error)
