"""The decorator that marks handlers, and the registry that holds them by name."""

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
"""A parameter of this name without a type takes the context."""


class HandlerError(Exception):
    """A handler cannot be used; the message names it and says why."""


class Provisions:
    """The values of lifespans by type. Types are known from the start, values once they are
    open.
    """

    def __init__(self, kinds: Iterable[Any] = ()) -> None:
        self._kinds = list(kinds)
        self._values: list[tuple[Any, Any]] = []

    def has(self, kind: Any) -> bool:
        """Return True if a lifespan provides a type. Types are compared: some cannot be hashed."""
        return any(each is kind for each in self._kinds)

    def put(self, kind: Any, value: Any) -> None:
        """Store the value of an open lifespan."""
        self._values.append((kind, value))

    def get(self, kind: Any) -> Any:
        """Return the value of a type. Raises LookupError."""
        for known, value in reversed(self._values):
            if known is kind:
                return value
        raise LookupError(f"no lifespan has provided {kind!r}")


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """A handler: the function of a command, and what the agent must know to call it."""

    name: str
    call: Callable[..., Any]
    description: str | None
    timeout_seconds: float | None
    params_type: Any
    """The type of the params; UNTYPED accepts any."""
    params_name: str | None
    """The parameter for the params; None for none."""
    context_name: str | None
    """The parameter for the context; None for none."""
    is_async: bool
    result_type: Any = UNTYPED
    """The type of the result; UNTYPED accepts any."""
    read_params: Callable[[bytes], Any] | None = None
    """Read params from bytes, for a handler that YAML declares. Raises CommandFailed."""
    params_schema: dict[str, Any] | None = None
    """The JSON Schema of the params, for a handler that YAML declares."""
    origin: str
    """The place where the handler was found, for messages."""
    idempotent: bool = True
    """A second run does no harm. If false, a command that was started is not run again."""
    concurrency: int | None = None
    """The number of runs at the same time; None: no limit but the agent's."""
    needs: dict[str, Any] = {}
    """Parameters for values of lifespans, and their types."""
    provisions: Provisions = msgspec.field(default_factory=Provisions)
    grace_seconds: float = 0.0
    """The time that it needs at least to end in order once it is cancelled."""


class _Mark(msgspec.Struct, frozen=True):
    """The arguments of the decorator, kept on the function."""

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
    """Mark a function as the handler of a command. The function itself does not change.

    The function takes params, a Context, both or neither. An `async def` runs in the event loop, a
    plain `def` in a thread. `timeout_seconds` bounds one run, `concurrency` the number of runs at
    the same time. Unless the handler is `idempotent`, a command that was started is not run again:
    it ends with MAYBE_EXECUTED.

    Raises HandlerError for a name that no command can have.
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
    """Yield the handlers of a module, or of one function. Raises HandlerError."""
    members: list[Any] = list(vars(found).values()) if isinstance(found, ModuleType) else [found]
    for member in members:
        marks: list[_Mark] = getattr(member, _MARK, []) if inspect.isfunction(member) else []
        for mark in marks:
            yield _handler(member, mark, origin, provisions or Provisions())


class Registry:
    """The handlers of an agent by name. A name belongs to one function only."""

    def __init__(self, lifespans: Iterable[Any] = (), provisions: Provisions | None = None) -> None:
        """Hold `lifespans`, which must be open before a handler runs."""
        self.lifespans: Final = tuple(lifespans)
        self.provisions: Final = provisions or Provisions()
        self._handlers: dict[str, Handler] = {}
        self._settings: Mapping[str, HandlerSettings] = {}

    def add(self, added: Handler) -> None:
        """Add a handler. Raises HandlerError when the name belongs to another function."""
        known = self._handlers.setdefault(added.name, added)
        if known is not added and known.call is not added.call:
            raise HandlerError(
                f"two handlers for {added.name!r}: {known.origin} and {added.origin}"
            )

    def configure(self, settings: Mapping[str, HandlerSettings]) -> Iterator[str]:
        """Use the host's settings; return the names that no handler has."""
        self._settings = settings
        return (name for name in settings if name not in self._handlers)

    def get(self, name: str) -> Handler | None:
        """Return the handler of a command with the host's settings; None for no handler."""
        found = self._handlers.get(name)
        settings = self._settings.get(name)
        return found if found is None or settings is None else _configured(found, settings)

    def __iter__(self) -> Iterator[Handler]:
        """Yield all handlers in the order of their names, with the host's settings."""
        return (each for name in sorted(self._handlers) if (each := self.get(name)) is not None)

    def as_found(self) -> Iterator[Handler]:
        """Yield all handlers without the host's settings."""
        return iter(self._handlers.values())

    def __len__(self) -> int:
        """Return the number of handlers."""
        return len(self._handlers)


def _configured(found: Handler, settings: HandlerSettings) -> Handler:
    """Return a handler with the host's settings."""
    changes = {
        key: value for key, value in msgspec.structs.asdict(settings).items() if value is not None
    }
    return msgspec.structs.replace(found, **changes)


def _handler(
    function: Callable[..., Any], mark: _Mark, origin: str, provisions: Provisions
) -> Handler:
    """Make a handler from a function's signature. Raises HandlerError."""
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
    """Return the types of a function's parameters and of its result. Raises HandlerError."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # annotations are the author's code
        for name, annotation in function.__annotations__.items():
            alone = SimpleNamespace(__annotations__={name: annotation})
            try:
                typing.get_type_hints(alone, function.__globals__)
            except Exception as reason:
                what = "the result" if name == "return" else f"the parameter {name}"
                raise HandlerError(f"{where}: {what}: its annotation: {reason}") from error
        raise HandlerError(f"{where}: its annotations: {error}") from error


def _checked(kind: Any, where: str) -> Any:
    """Return a type that JSON can be converted to. Raises HandlerError for others."""
    if shapes.is_anything(kind):
        return UNTYPED
    if kind is not bytes:
        try:
            shapes.check(kind)
        except TypeError as error:
            raise HandlerError(f"{where}: {error}") from None
    return kind


def _checked_result(kind: Any, where: str) -> Any:
    """Return a type that a result may have. Raises HandlerError for others."""
    if shapes.is_raw(kind):
        return kind if typing.get_origin(kind) not in shapes.UNIONS else UNTYPED
    return _checked(kind, where)


def _first_line(text: str | None) -> str | None:
    """Return the first line of a docstring."""
    lines = (text or "").strip().splitlines()
    return lines[0] if lines else None
