"""Batches carry all operations that wait into a connection's thread in one hop.

Statement by statement, each would cost two hops and two hand-overs of the GIL.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import structlog

from arc_protocol.errors import StoreUnavailable
from arc_runtime.failpoints import hit
from arc_server.store.engine.thread import Worker

MAX_WAITING: Final = 20_000
"""Operations that may wait for a connection: a second or more of its work. They hold their messages
in memory, and a caller behind them waits longer than a retry takes."""

T = TypeVar("T")
log = structlog.get_logger(__name__)


class Operation:
    """An operation is a function of a session, and the future that gets its answer or error."""

    __slots__ = ("answer", "args", "error", "function", "future")

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], future: asyncio.Future[Any]
    ) -> None:
        self.function = function
        self.args = args
        self.future = future
        self.answer: Any = None
        self.error: Exception | None = None


class Batches:
    """Batches queue operations in front of one connection. Their owner runs `run` as a task."""

    def __init__(
        self,
        worker: Worker,
        perform: Callable[[Sequence[Operation]], None],
        *,
        max_batch: int,
    ) -> None:
        """Run `perform` in the thread; it gives each operation its answer or its error."""
        self._worker = worker
        self._perform = perform
        self._max_batch = max_batch
        self._waiting: deque[Operation] = deque()
        self._arrived = asyncio.Event()
        self._is_closing = False

    def submit(self, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Queue `function(session, *args)`; the future gets what it returns or raises.

        Cancelling the future takes the operation back only if its batch has not begun.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if self._is_closing:
            future.set_exception(StoreUnavailable("the store is closed"))
            return future
        if len(self._waiting) >= MAX_WAITING:
            future.set_exception(StoreUnavailable("the database is busy; try again"))
            return future
        self._waiting.append(Operation(function, args, future))
        self._arrived.set()
        return future

    async def run(self) -> None:
        """Run batch after batch, until `close`."""
        while True:
            while not self._waiting:
                if self._is_closing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
            batch = self._take()
            try:
                await self._worker.run(self._perform, batch)
            except Exception:
                log.exception("store.batch_failed", operations=len(batch))
                for operation in batch:
                    operation.error = StoreUnavailable("the database failed")
            hit("store.before_answer")
            for operation in batch:
                _answer(operation)

    def close(self) -> None:
        """Take no more operations; `run` ends when all that wait are done."""
        self._is_closing = True
        self._arrived.set()

    def _take(self) -> list[Operation]:
        batch: list[Operation] = []
        while self._waiting and len(batch) < self._max_batch:
            operation = self._waiting.popleft()
            if not operation.future.done():
                batch.append(operation)
        return batch


def _answer(operation: Operation) -> None:
    future = operation.future
    if future.done():
        return
    if operation.error is None:
        future.set_result(operation.answer)
    else:
        future.set_exception(operation.error)
