"""Waiting in tests: for a condition, by looking at it again and again, up to a limit.

What a test can await as an event it awaits as one. Files, other processes and the state of a
server behind its API give no events: these are what is polled for here.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

LIMIT_SECONDS = 30.0
"""Reached only by a test that fails: what takes half a second may take ten on a busy machine."""
_POLL_SECONDS = 0.005


async def until(holds: Callable[[], Any | Awaitable[Any]], seconds: float = LIMIT_SECONDS) -> Any:
    """Wait until a condition holds; return what it came to. The condition may be a coroutine.

    Raises TimeoutError when it does not hold in time.
    """
    async with asyncio.timeout(seconds):
        while True:
            value = holds()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(_POLL_SECONDS)


def wait_until(holds: Callable[[], Any], seconds: float = LIMIT_SECONDS) -> Any:
    """Wait until a condition holds, in a test without an event loop; return what it came to.

    Raises TimeoutError when it does not hold in time.
    """
    end = time.monotonic() + seconds
    while not (value := holds()):
        if time.monotonic() > end:
            raise TimeoutError(f"it did not come true within {seconds} s")
        time.sleep(_POLL_SECONDS)
    return value


async def settle(turns: int = 30) -> None:
    """Let every task run that needs nothing but the event loop, until all of them wait."""
    for _ in range(turns):
        await asyncio.sleep(0)


class Changes:
    """Changes in this loop, announced by `notify`, at which a condition is looked at again."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Let every waiter look again."""
        self._changed.set()

    async def until(self, holds: Callable[[], bool], seconds: float = LIMIT_SECONDS) -> None:
        """Wait until a condition holds. Raises TimeoutError when it does not hold in time."""
        async with asyncio.timeout(seconds):
            while not holds():
                self._changed.clear()
                await self._changed.wait()
