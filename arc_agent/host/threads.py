"""Threads beside the event loop: run a plain function in one, and call back into the loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any, Final

import msgspec

THREAD_PREFIX: Final = "handler:"
"""The names of the threads begin so."""


class _Outcome(msgspec.Struct, frozen=True):
    """The outcome of a call: its value, or the exception that it raised."""

    value: Any = None
    error: BaseException | None = None


async def in_thread(call: Callable[[], Any], name: str, *, is_left: bool = False) -> Any:
    """Run a plain function in a thread of its own; return its value or raise its exception.

    A thread cannot be cancelled: a cancellation is raised only when the thread has ended, so that
    the caller's count of threads stays true. With `is_left` it is raised at once, and the thread
    goes on by itself. The thread does not keep the process alive.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Outcome] = loop.create_future()
    context = contextvars.copy_context()

    def finish(outcome: _Outcome) -> None:
        if not future.done():
            future.set_result(outcome)

    def work() -> None:
        try:
            outcome = _Outcome(value=context.run(call))
        except BaseException as error:  # SystemExit too: it would end this thread silently
            outcome = _Outcome(error=error)
        call_in(loop, lambda: finish(outcome))

    threading.Thread(target=work, name=f"{THREAD_PREFIX}{name}", daemon=True).start()
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            if is_left:
                raise
            cancelled = error
    if cancelled is not None:
        raise cancelled
    outcome = future.result()
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


def call_in(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    """Schedule a call in a loop; do nothing if the loop is closed. Safe from any thread."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call)
