"""Handlers by name: the decorator that makes them, and the table that holds them."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any, Final, TypeVar

import msgspec

from arc_agent.config.handler_sections import HandlerSettings
from arc_agent.handlers import shapes
from arc_agent.handlers.context import Context
from arc_agent.handlers.shapes import UNTYPED
from arc_protocol.messages.base import Name

F = TypeVar("F", bound=Callable[..., Any])

_MARK: Final = "__arc_handlers__"
_CONTEXT_NAMES: Final = ("ctx", "context")
"""A parameter without a type that is called so takes the context."""


class HandlerError(Exception):
    """Handlers that cannot be used; the message says which and why."""


class Provisions:
    """What lifespans provide: the types are known from the start, the values once they are open."""

    def __init__(self, kinds: Iterable[Any] = ()) -> None:
        self._kinds = list(kinds)
        self._values: list[tuple[Any, Any]] = []

    def has(self, kind: Any) -> bool:
        """Whether a type is provided. Types are compared, never hashed: not all of them can be."""
        return any(each is kind for each in self._kinds)

    def put(self, kind: Any, value: Any) -> None:
        """It is open."""
        self._values.append((kind, value))

    def get(self, kind: Any) -> Any:
        """What was put in. Raises LookupError."""
        for known, value in reversed(self._values):
            if known is kind:
                return value
        raise LookupError(f"no lifespan has provided {kind!r}")


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """A command that can be run here."""

    name: str
    call: Callable[..., Any]
    description: str | None
    timeout_seconds: float | None
    params_type: Any
    """What params are turned into; UNTYPED for whatever comes."""
    params_name: str | None
    """The parameter that takes the params, None when it takes none."""
    context_name: str | None
    """The parameter that takes the context, None when it takes none."""
    is_async: bool
    result_type: Any = UNTYPED
    """What it returns; UNTYPED for whatever it likes."""
    read_params: Callable[[bytes], Any] | None = None
    """Makes its params of bytes where no type says how. Raises CommandFailed."""
    params_schema: dict[str, Any] | None = None
    """The JSON Schema of its params where no type says it."""
    origin: str
    """Where it was found, for messages."""
    idempotent: bool = True
    """Whether a second run does no harm; if not, it is not run again once it has started."""
    concurrency: int | None = None
    """How many run at the same time; None: as many as the agent runs."""
    needs: dict[str, Any] = {}
    """Its other parameters, and the types of what lifespans provide for them."""
    provisions: Provisions = msgspec.field(default_factory=Provisions)
    grace_seconds: float = 0.0
    """What it needs at least to end tidily once it is cancelled."""


class _Mark(msgspec.Struct, frozen=True):
    """What the decorator leaves on a function."""

    name: str
    description: str | None
    timeout_seconds: float | None
    idempotent: bool
    concurrency: int | None


def handler(
    name: str,
    *,
    description: str | None = None,
    timeout_seconds: float | None = None,
    idempotent: bool = True,
    concurrency: int | None = None,
) -> Callable[[F], F]:
    """Mark a function as the handler of a command. The function itself stays as it is.

    It takes params, a Context, both or neither. `async def` runs in the event loop, a plain `def`
    in a thread. `timeout_seconds` bounds one run, `concurrency` how many there are at once. Unless
    it is `idempotent`, a command whose handler was started is not run again: MAYBE_EXECUTED. Raises
    HandlerError for a name that no command can have.
    """
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError:
        raise HandlerError(f"{name!r} cannot be the name of a command") from None
    if timeout_seconds is not None and not timeout_seconds > 0:
        raise HandlerError(f"{name}: timeout_seconds must be positive")
    if concurrency is not None and concurrency < 1:
        raise HandlerError(f"{name}: concurrency must be 1 or more")
    mark = _Mark(name, description, timeout_seconds, idempotent, concurrency)

    def decorate(function: F) -> F:
        setattr(function, _MARK, [*getattr(function, _MARK, []), mark])
        return function

    return decorate


def handlers_of(found: Any, origin: str, provisions: Provisions | None = None) -> Iterator[Handler]:
    """The marked functions in a module, or the marked function itself. Raises HandlerError."""
    members: list[Any] = list(vars(found).values()) if isinstance(found, ModuleType) else [found]
    for member in members:
        marks: list[_Mark] = getattr(member, _MARK, []) if inspect.isfunction(member) else []
        for mark in marks:
            yield _handler(member, mark, origin, provisions or Provisions())


class Registry:
    """All handlers. A name belongs to one function only."""

    def __init__(self, lifespans: Iterable[Any] = (), provisions: Provisions | None = None) -> None:
        """`lifespans` are to be opened before anything is run (lifespans.py)."""
        self.lifespans: Final = tuple(lifespans)
        self.provisions: Final = provisions or Provisions()
        self._handlers: dict[str, Handler] = {}
        self._settings: Mapping[str, HandlerSettings] = {}

    def add(self, added: Handler) -> None:
        """Take a handler in; the same function twice is fine. Raises HandlerError."""
        known = self._handlers.setdefault(added.name, added)
        if known is not added and known.call is not added.call:
            raise HandlerError(
                f"two handlers for {added.name!r}: {known.origin} and {added.origin}"
            )

    def configure(self, settings: Mapping[str, HandlerSettings]) -> Iterator[str]:
        """Take what the host says of handlers; the names that are no handler's."""
        self._settings = settings
        return (name for name in settings if name not in self._handlers)

    def get(self, name: str) -> Handler | None:
        """The handler of a command, as configured."""
        found = self._handlers.get(name)
        settings = self._settings.get(name)
        return found if found is None or settings is None else _configured(found, settings)

    def __iter__(self) -> Iterator[Handler]:
        """All of them by name, as configured."""
        return (each for name in sorted(self._handlers) if (each := self.get(name)) is not None)

    def as_found(self) -> Iterator[Handler]:
        """All of them, as their code says."""
        return iter(self._handlers.values())

    def __len__(self) -> int:
        """How many there are."""
        return len(self._handlers)


def _configured(found: Handler, settings: HandlerSettings) -> Handler:
    """A handler with what the host says of it."""
    said = {
        key: value for key, value in msgspec.structs.asdict(settings).items() if value is not None
    }
    return msgspec.structs.replace(found, **said)


def _handler(
    function: Callable[..., Any], mark: _Mark, origin: str, provisions: Provisions
) -> Handler:
    """Look at a function's signature. Raises HandlerError when it cannot be called as one."""
    where = f"{mark.name} ({origin})"
    hints = _hints(function, where)
    params_name = context_name = None
    params_type: Any = UNTYPED
    needs: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        hint = hints.get(parameter.name, UNTYPED)
        if hint is Context or (hint in (UNTYPED, Any) and parameter.name in _CONTEXT_NAMES):
            context_name = parameter.name
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        elif provisions.has(hint):
            needs[parameter.name] = hint
        elif params_name is None:
            params_name, params_type = parameter.name, hint
        elif parameter.default is UNTYPED:
            raise HandlerError(
                f"{where}: takes more than params and a Context: {parameter.name}, which no"
                " lifespan provides"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise HandlerError(f"{where}: {parameter.name} is positional-only")
    return Handler(
        name=mark.name,
        call=function,
        description=mark.description or _first_line(function.__doc__),
        timeout_seconds=mark.timeout_seconds,
        idempotent=mark.idempotent,
        concurrency=mark.concurrency,
        params_type=_checked(params_type, f"{where}: the parameter {params_name}"),
        params_name=params_name,
        context_name=context_name,
        needs=needs,
        provisions=provisions,
        result_type=_checked_result(hints.get("return", UNTYPED), f"{where}: the result"),
        is_async=inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function),
        origin=origin,
    )


def _hints(function: Callable[..., Any], where: str) -> dict[str, Any]:
    """The types of a function's parameters and of its result. Raises HandlerError."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # annotations are the handler author's code: anything may be raised
        for name, annotation in function.__annotations__.items():
            alone = SimpleNamespace(__annotations__={name: annotation})
            try:
                typing.get_type_hints(alone, function.__globals__)
            except Exception as reason:
                what = "the result" if name == "return" else f"the parameter {name}"
                raise HandlerError(f"{where}: {what}: its annotation: {reason}") from error
        raise HandlerError(f"{where}: its annotations: {error}") from error


def _checked(kind: Any, where: str) -> Any:
    """A type that params can be turned into. Raises HandlerError for others."""
    if shapes.is_anything(kind):
        return UNTYPED
    if kind is not bytes:
        try:
            shapes.check(kind)
        except TypeError as error:
            raise HandlerError(f"{where}: {error}") from None
    return kind


def _checked_result(kind: Any, where: str) -> Any:
    """A type that a result may have. Raises HandlerError for others."""
    if shapes.is_raw(kind):
        return kind if typing.get_origin(kind) not in shapes.UNIONS else UNTYPED
    return _checked(kind, where)


def _first_line(text: str | None) -> str | None:
    """What a docstring says first."""
    lines = (text or "").strip().splitlines()
    return lines[0] if lines else None
