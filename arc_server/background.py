"""Loops that run in the background for as long as the server does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import structlog

log = structlog.get_logger(__name__)


def in_background(
    stack: AsyncExitStack,
    fail: Callable[[BaseException], None],
    name: str,
    loop: Coroutine[Any, Any, None],
    *,
    patience_seconds: float = 0,
) -> None:
    """Run a loop until the stack is unwound, and for a while longer. Call `fail` if it fails."""
    task = asyncio.get_running_loop().create_task(loop, name=name)

    def ended(done: asyncio.Task[None]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None:
            log.error("server.loop_failed", loop=name, exc_info=error)
            fail(error)

    async def end() -> None:
        await asyncio.wait((task,), timeout=patience_seconds)
        task.cancel()
        await asyncio.wait((task,))

    task.add_done_callback(ended)
    stack.push_async_callback(end)
