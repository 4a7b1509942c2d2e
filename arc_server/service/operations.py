"""Operations that run to their end, also when whoever asked for them has gone."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar


class HasOperations(Protocol):
    """A service with such operations."""

    operations: Operations


P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=HasOperations)


class Operations:
    """What runs now and is waited for when the server stops."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def own(self, coroutine: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        """Run something to its end; `finish` waits for it."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def finish(self) -> None:
        """Wait for the operations whose callers have gone."""
        while self._running:
            await asyncio.wait(self._running)


def to_the_end(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Awaitable[R]]:
    """Let an operation finish, and announce what it did, also when its caller is cancelled."""

    @functools.wraps(method)
    def run(self: S, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        return asyncio.shield(self.operations.own(method(self, *args, **kwargs)))

    return run
