"""What a module opens once, before the agent asks for work, and closes when it stops.

A lifespan is a generator: what comes before its `yield` opens, what comes after closes, and what it
yields is passed to every handler, and every other lifespan, that has a parameter of that type.
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
    """One that did not open. `report` is the traceback."""

    def __init__(self, message: str, report: str) -> None:
        super().__init__(message)
        self.report = report


class Lifespan(msgspec.Struct, frozen=True, kw_only=True):
    """A marked generator function."""

    call: Callable[..., Any]
    where: str
    """Its name and its module, for messages."""
    provides: Any
    """The type of what it yields; None when it only opens and closes."""
    needs: dict[str, Any]
    """Its parameters and their types."""


def lifespan(function: F) -> F:
    """Mark a generator function, async or plain, whose `yield` lasts as long as the agent runs."""
    if not (inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function)):
        raise HandlerError(
            f"the lifespan {function.__name__}: it must be a generator, with a yield"
        )
    setattr(function, _MARK, True)
    return function


def lifespans_of(found: Any, origin: str) -> Iterator[Lifespan]:
    """The lifespans in a module. Raises HandlerError."""
    if not isinstance(found, ModuleType):
        return
    for member in list(vars(found).values()):
        if inspect.isfunction(member) and getattr(member, _MARK, False):
            yield _lifespan(member, f"the lifespan {member.__name__} ({origin})")


def in_order(found: Iterable[Lifespan]) -> list[Lifespan]:
    """Those first that others need. Raises HandlerError for what nobody provides, or two do."""
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
    """Open one after the other, each within its time; `stack` closes them. Raises LifespanFailed.

    What they yield is in `provisions` from then on.
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
    """Let a generator go on to its end. Whatever happens is said, and the others are closed."""
    try:
        async with asyncio.timeout(seconds):
            if await _next(generator) is not _ENDED:
                log.error("lifespan.not_closed", lifespan=closed.where, reason="a second yield")
    except TimeoutError:
        log.error("lifespan.not_closed", lifespan=closed.where, reason=f"not within {seconds:g} s")
    except (Exception, SystemExit) as error:
        log.error("lifespan.not_closed", lifespan=closed.where, exc_info=error)


async def _next(generator: Any) -> Any:
    """What a generator yields next, in a thread if it is a plain one; _ENDED at its end."""
    if inspect.isasyncgen(generator):
        return await anext(cast("AsyncIterator[Any]", generator), _ENDED)
    return await in_thread(lambda: next(generator, _ENDED), "lifespan")


def _lifespan(function: Callable[..., Any], where: str) -> Lifespan:
    """Look at the signature. Raises HandlerError."""
    try:
        hints = typing.get_type_hints(function)
    except Exception as error:  # annotations are code of others
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
    """A type, for messages."""
    return getattr(kind, "__name__", str(kind))
