"""Calling a handler so that nothing it does can harm the agent: exceptions, exits, threads."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, cast

import msgspec

from arc_agent.handlers.context import Context
from arc_agent.handlers.registry import Handler


class Returned(msgspec.Struct, frozen=True):
    """What a call came back with."""

    value: Any


class Raised(msgspec.Struct, frozen=True):
    """What it raised instead; SystemExit and the like included."""

    error: BaseException


async def call_handler(
    handler: Handler,
    params: Any,
    context: Context,
    consume: Callable[[AsyncIterator[Any]], Awaitable[Any]],
) -> Returned | Raised:
    """Run a handler to its end. Only a cancellation from outside is raised.

    An iterator that it returns is handed to `consume` as part of the run.
    """
    arguments: dict[str, Any] = {}
    if handler.params_name is not None:
        arguments[handler.params_name] = params
    if handler.context_name is not None:
        arguments[handler.context_name] = context
    for name, kind in handler.needs.items():
        arguments[name] = handler.provisions.get(kind)

    async def run() -> Any:
        if handler.is_async:
            result = handler.call(**arguments)
            if inspect.isawaitable(result):
                result = await result
        else:
            result = await in_thread(lambda: handler.call(**arguments), handler.name)
        if isinstance(result, AsyncIterator):
            return await consume(cast("AsyncIterator[Any]", result))
        if inspect.isgenerator(result):
            return await consume(_from_thread(cast("Iterator[Any]", result)))
        return result

    task = asyncio.current_task()
    try:
        return Returned(await run())
    except asyncio.CancelledError as error:
        if task is not None and task.cancelling():
            raise
        return Raised(error)  # its own doing: it awaited something that was cancelled
    except BaseException as error:  # the boundary: whatever it is, it is the handler's
        return Raised(error)


async def in_thread(call: Callable[[], Any], name: str) -> Any:
    """Run a plain function in a thread of its own.

    Threads cannot be cancelled: a cancellation is raised only when the thread has ended, so that
    whoever counts threads counts right. The thread does not keep the process alive.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Returned | Raised] = loop.create_future()
    context = contextvars.copy_context()

    def finish(outcome: Returned | Raised) -> None:
        if not future.done():
            future.set_result(outcome)

    def work() -> None:
        outcome: Returned | Raised
        try:
            outcome = Returned(context.run(call))
        except BaseException as error:  # as above; an exit must not print and vanish
            outcome = Raised(error)
        call_in(loop, lambda: finish(outcome))

    threading.Thread(target=work, name=f"handler:{name}", daemon=True).start()
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    outcome = future.result()
    if isinstance(outcome, Raised):
        raise outcome.error
    return outcome.value


async def _from_thread(iterator: Iterator[Any]) -> AsyncIterator[Any]:
    """A plain iterator, each step of it in a thread."""
    end = object()
    while (item := await in_thread(lambda: next(iterator, end), "iterator")) is not end:
        yield item


def call_in(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    """Call in a loop, from any thread; a loop that is gone needs no call."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call)
