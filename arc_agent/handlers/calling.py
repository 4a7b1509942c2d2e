"""One call of a handler, contained: its exceptions and exits cannot harm the agent."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final, cast

import msgspec

from arc_agent.handlers.context import Context
from arc_agent.handlers.registry import Handler
from arc_agent.host.threads import in_thread

_STEPS_BYTES: Final = 64 * 1024
_STEPS_SECONDS: Final = 0.02
"""The steps of an iterator take turns in one thread until they have yielded so many bytes, or for
so long: a thread for each costs 0.1 ms and more, and no thread can be stopped in the middle."""


class Returned(msgspec.Struct, frozen=True):
    """The value that a handler returned."""

    value: Any


class Raised(msgspec.Struct, frozen=True):
    """The exception that a handler raised, SystemExit and KeyboardInterrupt included."""

    error: BaseException


async def call_handler(
    handler: Handler,
    params: Any,
    context: Context,
    consume: Callable[[AsyncIterator[Any]], Awaitable[Any]],
) -> Returned | Raised:
    """Run a handler to its end. Only a cancellation from outside is raised.

    If the handler returns an iterator, the run includes `consume`, which reads it to its end.
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
        return Raised(error)  # the handler's own: it awaited a task that was cancelled
    except BaseException as error:  # the boundary between the handler and the agent
        return Raised(error)


async def _from_thread(iterator: Iterator[Any]) -> AsyncIterator[Any]:
    """Yield from a plain iterator, whose steps run in threads: as many as are quick in each."""
    is_over = False

    def steps() -> list[Any]:
        nonlocal is_over
        until, size, items = time.monotonic() + _STEPS_SECONDS, 0, list[Any]()
        for item in iterator:
            items.append(item)
            size += len(item) if isinstance(item, bytes) else 1
            if size >= _STEPS_BYTES or time.monotonic() >= until:
                return items
        is_over = True
        return items

    while not is_over:
        for item in await in_thread(steps, "iterator"):
            yield item
