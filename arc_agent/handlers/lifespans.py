"""Lifespans: resources that a module opens before the agent takes commands, and closes at its end.

A lifespan is a generator. The code before its `yield` opens the resource, the code after it closes
it. The value it yields is passed to every handler, and to every later lifespan, with a parameter of
the value's type.
"""

from __future__ import annotations

import asyncio
import collections.abc
import inspect
import traceback
import typing
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from types import ModuleType
from typing import Any, Final, TypeVar, cast

import msgspec
import structlog

from arc_agent.handlers.registry import HandlerError, Provisions
from arc_agent.host.threads import in_thread

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

F = TypeVar("F", bound=Callable[..., Any])

_MARK: Final = "__arc_lifespan__"
_KINDS: Final = (
    collections.abc.AsyncIterator,
    collections.abc.AsyncGenerator,
    collections.abc.Iterator,
    collections.abc.Generator,
)


class LifespanFailed(HandlerError):
    """A lifespan did not open. `report` is the traceback."""

    def __init__(self, message: str, report: str) -> None:
        super().__init__(message)
        self.report = report


class Lifespan(msgspec.Struct, frozen=True, kw_only=True):
    """A marked generator function."""

    call: Callable[..., Any]
    where: str
    """Name and module, for messages."""
    provides: Any
    """The type of the value it yields; None for a lifespan without a value."""
    needs: dict[str, Any]
    """The parameters of the lifespan and their types."""


def lifespan(function: F) -> F:
    """Mark an async or plain generator function as a lifespan. Raises HandlerError for another."""
    if not (inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function)):
        raise HandlerError(
            f"the lifespan {function.__name__}: it must be a generator, with a yield"
        )
    setattr(function, _MARK, True)
    return function


def lifespans_of(found: Any, origin: str) -> Iterator[Lifespan]:
    """Yield the lifespans of a module. Raises HandlerError."""
    if not isinstance(found, ModuleType):
        return
    for member in list(vars(found).values()):
        if inspect.isfunction(member) and getattr(member, _MARK, False):
            yield _lifespan(member, f"the lifespan {member.__name__} ({origin})")


def in_order(found: Iterable[Lifespan]) -> list[Lifespan]:
    """Return lifespans in the order of their needs.

    Raises HandlerError for a value that no lifespan provides, or that two provide.
    """
    waiting = list({each.call: each for each in found}.values())
    by_type: dict[Any, Lifespan] = {}
    for each in waiting:
        if each.provides is not None and by_type.setdefault(each.provides, each) is not each:
            other = by_type[each.provides]
            raise HandlerError(
                f"{each.where} and {other.where} provide {_name(each.provides)} both"
            )
    ordered: list[Lifespan] = []
    while waiting:
        opened = [each.provides for each in ordered]
        ready = [each for each in waiting if all(kind in opened for kind in each.needs.values())]
        if not ready:
            stuck = waiting[0]
            missing = next(kind for kind in stuck.needs.values() if kind not in opened)
            raise HandlerError(f"{stuck.where}: nothing before it provides {_name(missing)}")
        ordered += ready
        waiting = [each for each in waiting if each not in ready]
    return ordered


async def open_all(
    lifespans: Iterable[Lifespan], provisions: Provisions, stack: AsyncExitStack, seconds: float
) -> None:
    """Open one lifespan after the other, each within `seconds`; `stack` closes them.

    `provisions` then holds their values. Raises LifespanFailed.
    """
    for each in lifespans:
        arguments = {name: provisions.get(kind) for name, kind in each.needs.items()}
        generator: Any = each.call(**arguments)
        try:
            async with asyncio.timeout(seconds):
                value = await _next(generator)
        except TimeoutError:
            raise LifespanFailed(
                f"{each.where}: it did not open within {seconds:g} s", ""
            ) from None
        except (Exception, SystemExit) as error:
            reason = f"{each.where}: {type(error).__name__}: {error}"
            raise LifespanFailed(reason, traceback.format_exc()) from None
        if value is _ENDED:
            raise LifespanFailed(f"{each.where}: it ended without a yield", "")
        stack.push_async_callback(_close, each, generator, seconds)
        if each.provides is not None:
            provisions.put(each.provides, value)


_ENDED: Final = object()


async def _close(closed: Lifespan, generator: Any, seconds: float) -> None:
    """Run a generator to its end. A failure is logged, and does not keep others from closing."""
    try:
        async with asyncio.timeout(seconds):
            if await _next(generator) is not _ENDED:
                log.error("lifespan.not_closed", lifespan=closed.where, reason="a second yield")
    except TimeoutError:
        log.error("lifespan.not_closed", lifespan=closed.where, reason=f"not within {seconds:g} s")
    except (Exception, SystemExit) as error:
        log.error("lifespan.not_closed", lifespan=closed.where, exc_info=error)


async def _next(generator: Any) -> Any:
    """Return a generator's next value, _ENDED at its end. A plain generator runs in a thread."""
    if inspect.isasyncgen(generator):
        return await anext(cast("AsyncIterator[Any]", generator), _ENDED)
    return await in_thread(lambda: next(generator, _ENDED), "lifespan", is_left=True)


def _lifespan(function: Callable[..., Any], where: str) -> Lifespan:
    """Make a lifespan from a function's signature. Raises HandlerError."""
    try:
        hints = typing.get_type_hints(function)
    except Exception as error:  # annotations are the author's code
        raise HandlerError(f"{where}: its annotations: {error}") from None
    yielded = hints.pop("return", None)
    arguments = typing.get_args(yielded) if typing.get_origin(yielded) in _KINDS else ()
    provides = arguments[0] if arguments and arguments[0] not in (type(None), Any) else None
    needs: dict[str, Any] = {}
    for name in inspect.signature(function).parameters:
        if name not in hints:
            raise HandlerError(f"{where}: the parameter {name} needs a type")
        needs[name] = hints[name]
    return Lifespan(call=function, where=where, provides=provides, needs=needs)


def _name(kind: Any) -> str:
    """Return a type's name, for messages."""
    return getattr(kind, "__name__", str(kind))
