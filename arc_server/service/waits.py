"""A wait is the sleep of one request, which can be ended from outside.

A client that goes, or a token that is revoked, ends the sleep with an error and nothing else. All
other work of a request runs to its end: what the store has acknowledged is announced, and a lease
that cannot be delivered is released. No method of a service is cancelled, and no write depends on
whether its client is still connected.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, TypeVar

T = TypeVar("T")


class Wait:
    """The wait of one request. For the event loop only."""

    __slots__ = ("_future", "error", "has_run_out", "slept_seconds", "woken_at")

    def __init__(self) -> None:
        self.error: Exception | None = None
        """Why the request has no one to answer any more; None while it has."""
        self.slept_seconds = 0.0
        self.woken_at = 0.0
        """When the latest sleep ended, by the monotonic clock; 0 before the first."""
        self.has_run_out = False
        """True if that sleep ended because its time was up."""
        self._future: asyncio.Future[Any] | None = None

    def end(self, error: Exception) -> None:
        """End the sleep, or the next one if none has begun, with an error."""
        self.error = self.error or error
        if self._future is not None and not self._future.done():
            self._future.set_exception(error)

    def check(self) -> None:
        """Raise the error that the wait was ended with, if it was."""
        if self.error is not None:
            raise self.error

    async def until(self, future: asyncio.Future[T | None], seconds: float) -> T | None:
        """Sleep until the future has a result; None when that much time has passed before.

        Raises the error that the wait is ended with.
        """
        self.check()
        if future.done():
            return future.result()
        self._future = future
        self.has_run_out = False
        began = time.monotonic()
        timer = future.get_loop().call_later(seconds, self._run_out, future)
        try:
            return await future
        finally:
            timer.cancel()
            self._future = None
            self.woken_at = time.monotonic()
            self.slept_seconds += self.woken_at - began

    def _run_out(self, future: asyncio.Future[Any]) -> None:
        if not future.done():
            self.has_run_out = True
            future.set_result(None)


def finish(future: asyncio.Future[T], result: T) -> None:
    """Give a future its result, unless it is done."""
    if not future.done():
        future.set_result(result)
