"""Threads beside the event loop: values, exceptions, cancellation, and calls back."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from arc_agent.host.threads import call_in, in_thread

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


async def test_a_value_comes_back_from_a_thread_of_that_name() -> None:
    VARIABLE.set("of the caller")

    def call() -> tuple[str, str, bool]:
        thread = threading.current_thread()
        return VARIABLE.get(), thread.name, thread.daemon

    assert await in_thread(call, "x") == ("of the caller", "handler:x", True)


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(3), StopIteration()])
async def test_an_exception_comes_back(error: BaseException) -> None:
    def call() -> None:
        raise error

    # StopIteration cannot leave a coroutine: Python makes a RuntimeError of it.
    expected = RuntimeError if isinstance(error, StopIteration) else type(error)
    with pytest.raises(expected):
        await in_thread(call, "x")


async def test_a_cancellation_is_raised_only_when_the_thread_has_ended() -> None:
    begun, may_end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def call() -> str:
        call_in(loop, begun.set)
        may_end.wait(60)
        return "a value"

    task = asyncio.ensure_future(in_thread(call, "x"))
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()

    may_end.set()

    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_call_into_a_closed_loop_is_dropped() -> None:
    loop = asyncio.new_event_loop()
    loop.close()

    call_in(loop, lambda: None)
