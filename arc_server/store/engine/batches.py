"""Batches carry all operations that wait into a connection's thread in one hop.

Statement by statement, each would cost two hops and two hand-overs of the GIL. Deployments share a
batch fairly: each has a queue of its own, and a batch takes from all of them in turns.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import structlog

from arc_protocol.errors import StoreUnavailable
from arc_runtime import failpoints
from arc_server.store.engine import faults
from arc_server.store.engine.thread import Worker

MAX_WAITING: Final = 20_000
"""Operations that may wait for a connection: a second or more of its work. They hold their messages
in memory, and a caller behind them waits longer than a retry takes."""
SHARE: Final = 2
"""One queue may hold one part in so many of them, so that others find room."""

T = TypeVar("T")
log = structlog.get_logger(__name__)


class Operation:
    """An operation is a function of a session, and the future that gets its answer or error."""

    __slots__ = ("answer", "args", "error", "function", "future", "queue", "since")

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        future: asyncio.Future[Any],
        queue: str,
        since: float,
    ) -> None:
        self.function = function
        self.args = args
        self.future = future
        self.queue = queue
        self.since = since
        self.answer: Any = None
        self.error: Exception | None = None


class Batches:
    """Batches queue operations in front of one connection. Their owner runs `run` as a task."""

    def __init__(
        self,
        worker: Worker,
        perform: Callable[[Sequence[Operation]], int],
        *,
        max_batch: int,
    ) -> None:
        """Run `perform` in the thread. It gives operations their answers or errors, and returns how
        many: the others go into the next batch."""
        self._worker = worker
        self._perform = perform
        self._max_batch = max_batch
        self._queues: dict[str, deque[Operation]] = {}
        """None of them empty; the first is the next to be taken from."""
        self._waiting = 0
        self._arrived = asyncio.Event()
        self._is_closing = False

    @property
    def waiting(self) -> int:
        """Return the number of operations that wait for their batch."""
        return self._waiting

    def longest_wait_seconds(self) -> float:
        """Return how long the oldest of them has waited; 0 if none waits."""
        if not self._queues:
            return 0.0
        oldest = min(waiting[0].since for waiting in self._queues.values())
        return max(0.0, asyncio.get_running_loop().time() - oldest)

    def submit(self, function: Callable[..., T], *args: Any, queue: str = "") -> asyncio.Future[T]:
        """Queue `function(session, *args)`; the future gets what it returns or raises.

        Operations of one queue run in order; name it after the deployment that they are for.
        Cancelling the future takes the operation back only if its batch has not begun.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if self._is_closing:
            future.set_exception(StoreUnavailable("the store is closed"))
            return future
        waiting = self._queues.get(queue)
        if self._waiting >= MAX_WAITING or (waiting and len(waiting) >= MAX_WAITING // SHARE):
            future.set_exception(StoreUnavailable("the database is busy; try again"))
            return future
        if waiting is None:
            waiting = self._queues[queue] = deque()
        waiting.append(Operation(function, args, future, queue, loop.time()))
        self._waiting += 1
        self._arrived.set()
        return future

    async def run(self) -> None:
        """Run batch after batch, until `close`."""
        while True:
            while not self._queues:
                if self._is_closing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
            batch = self._take()
            done = len(batch)
            try:
                done = await self._worker.run(self._perform, batch)
            except Exception as error:
                log.exception("store.batch_failed", operations=len(batch))
                for operation in batch:
                    operation.error = faults.for_callers(error)
            failpoints.hit("store.before_answer")
            for operation in batch[:done]:
                _answer(operation)
            self._put_back(batch[done:])

    def close(self) -> None:
        """Take no more operations; `run` ends when all that wait are done."""
        self._is_closing = True
        self._arrived.set()

    def _take(self) -> list[Operation]:
        batch: list[Operation] = []
        queues = self._queues
        while queues and len(batch) < self._max_batch:
            queue = next(iter(queues))
            waiting = queues.pop(queue)
            operation = waiting.popleft()
            self._waiting -= 1
            if waiting:
                queues[queue] = waiting  # behind the others
            if not operation.future.done():
                batch.append(operation)
        return batch

    def _put_back(self, left: Sequence[Operation]) -> None:
        """Put operations at the front of their queues again."""
        for operation in reversed(left):
            self._queues.setdefault(operation.queue, deque()).appendleft(operation)
        self._waiting += len(left)


def _answer(operation: Operation) -> None:
    future = operation.future
    if future.done():
        return
    if operation.error is None:
        future.set_result(operation.answer)
    else:
        future.set_exception(operation.error)
