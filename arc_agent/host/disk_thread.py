"""The disk thread writes all that must be durable: spool, journal and audit log.

One thread for all of them, because an fsync takes as long for one row as for fifty: while it
waits for the disk, new items queue up, and the next batch writes all of them. The items of one
writer are written in the order in which they were put.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

import structlog

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

T = TypeVar("T")

_LINGER_SECONDS: Final = 0.05
"""The longest that an item without haste waits for another to share its fsync with."""
_END_SECONDS: Final = 5.0


class Writer(Protocol):
    """A file or a database that the disk thread writes."""

    def write(self, items: Sequence[Any]) -> Sequence[Any]:
        """Make the items durable as one batch; return a result or an exception for each.

        Runs in the disk thread. Never raises.
        """
        ...


class _Put:
    """An item in the queue, and the future of the caller who waits for it."""

    __slots__ = ("future", "item", "may_linger", "writer")

    def __init__(
        self,
        writer: Writer,
        item: Any,
        future: asyncio.Future[Any] | concurrent.futures.Future[Any] | None,
        *,
        may_linger: bool = False,
    ) -> None:
        self.writer = writer
        self.item = item
        self.future = future
        self.may_linger = may_linger


class DiskThread:
    """The thread. An asynchronous context manager; its end writes what still waits."""

    def __init__(self, on_death: Callable[[], None] = lambda: None) -> None:
        """Prepare the thread. Call `on_death` in the loop if the thread dies."""
        self._on_death = on_death
        self._puts: deque[_Put] = deque()
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_woken = False
        self._has_lingered = False
        """True once items that lingered for company are to be written."""
        self._is_stopping = False
        self._death: Exception | None = None
        self._calls = _Calls()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self._main, name="disk", daemon=True)

    async def __aenter__(self) -> Self:
        """Start the thread."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what waits, and end the thread."""
        self._is_stopping = True
        if self._timer is not None:
            self._timer.cancel()
        if self._thread.is_alive():
            with contextlib.suppress(Exception):
                await self.call(lambda: None)
            self._wake()
            self._thread.join(_END_SECONDS)

    def put(self, writer: Writer, item: Any) -> None:
        """Write an item within 50 ms, with the next that a caller waits for. Main loop only."""
        self._puts.append(_Put(writer, item, None))
        self._linger()

    def submit(self, writer: Writer, item: Any, *, may_linger: bool = False) -> asyncio.Future[Any]:
        """Write an item; return the future of its result, which is there once it is durable.

        With `may_linger` it waits up to 50 ms for another item of its writer to share an fsync
        with. A caller that goes cancels nothing. Main loop only.
        """
        if self._death is not None:
            raise self._death
        future: asyncio.Future[Any] = self._loop.create_future()
        self._puts.append(_Put(writer, item, future, may_linger=may_linger))
        if may_linger:
            self._linger()
        else:
            self._wake()
        return future

    async def write(self, writer: Writer, item: Any, *, may_linger: bool = False) -> Any:
        """Write an item and wait until it is durable; return its result or raise its exception."""
        return await self.submit(writer, item, may_linger=may_linger)

    def write_blocking(self, writer: Writer, item: Any) -> Any:
        """Write an item and block until it is durable. From any thread but the disk's own."""
        if self._death is not None:
            raise self._death
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._puts.append(_Put(writer, item, future))
        self._wake()
        return future.result()

    async def call(self, call: Callable[[], T]) -> T:
        """Run a plain function in the thread, after all that was put before."""
        return await self.write(self._calls, call)

    def _wake(self) -> None:
        """Let the thread write now. From any thread."""
        # Read after the append and reset before the reading: no item is left lying.
        if not self._is_woken:
            self._is_woken = True
            self._wakes.put(None)

    def _linger(self) -> None:
        """Let the thread write soon."""
        if self._timer is None:
            self._timer = self._loop.call_later(_LINGER_SECONDS, self._lingered)

    def _lingered(self) -> None:
        """Wake the thread for the items that lingered for others."""
        self._timer = None
        if self._puts:
            self._has_lingered = True
            self._wake()

    # In the thread

    def _main(self) -> None:
        """Write batch after batch until stopped."""
        try:
            while not (self._is_stopping and not self._puts):
                self._wakes.get()
                self._is_woken = False
                self._write_all()
        except Exception as error:  # without it nothing is durable: the agent must not go on
            self._death = error
            log.critical("disk.died", exc_info=True)
            self._answer([(put, error) for put in self._taken()])
            self.in_loop(self._on_death)

    def _taken(self) -> list[_Put]:
        """Take all that waits out of the queue."""
        taken: list[_Put] = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._puts.popleft())
        return taken

    def _write_all(self) -> None:
        """Write what waits, one batch for each writer; a call waits for what was put before it."""
        is_late = self._is_stopping
        if self._has_lingered:  # reset only where it was seen: the loop may set it meanwhile
            self._has_lingered = False
            is_late = True
        batches: dict[Writer, list[_Put]] = {}
        for put in self._taken():
            if put.writer is self._calls:
                self._write_batches(batches)
                batches = {}
            batches.setdefault(put.writer, []).append(put)
        if not is_late:
            self._put_back(batches)
        self._write_batches(batches)

    def _put_back(self, batches: dict[Writer, list[_Put]]) -> None:
        """Leave batches that may linger in the queue: their fsync would delay those in haste."""
        for writer in [each for each, puts in batches.items() if _may_linger(puts)]:
            self._puts.extendleft(reversed(batches.pop(writer)))

    def _write_batches(self, batches: Mapping[Writer, Sequence[_Put]]) -> None:
        """Write one batch for each writer, and answer each when it is durable."""
        for writer, puts in batches.items():
            results: Sequence[Any] = [RuntimeError("the disk thread died")] * len(puts)
            try:
                results = writer.write([put.item for put in puts])
            finally:
                self._answer(list(zip(puts, results, strict=True)))

    def _answer(self, answers: Sequence[tuple[_Put, Any]]) -> None:
        """Hand the results to the callers that wait: one call into the loop for all."""
        waited: list[tuple[asyncio.Future[Any], Any]] = []
        for put, result in answers:
            if isinstance(put.future, concurrent.futures.Future):
                _settle(put.future, result)
            elif put.future is not None:
                waited.append((put.future, result))
        if waited:
            self.in_loop(lambda: _settle_all(waited))

    def in_loop(self, call: Callable[[], object]) -> None:
        """Call in the main loop; a loop that is gone needs no call."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)


class _Calls:
    """The writer of plain functions."""

    def write(self, items: Sequence[Callable[[], Any]]) -> Sequence[Any]:
        """Call each."""
        results: list[Any] = []
        for call in items:
            try:
                results.append(call())
            except Exception as error:  # the caller's, who gets it
                results.append(error)
        return results


def _may_linger(puts: Sequence[_Put]) -> bool:
    """Return True if none of the items is in haste."""
    return all(put.may_linger for put in puts)


def _settle(future: asyncio.Future[Any] | concurrent.futures.Future[Any], result: Any) -> None:
    """Give a future its result or exception."""
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)


def _settle_all(answers: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    """Give all futures that are still waited for their results."""
    for future, result in answers:
        if not future.done():
            _settle(future, result)
