"""Types of handlers: what may stand in an annotation, values from JSON and to it, JSON Schema.

msgspec knows structs, dataclasses, TypedDicts, enums, dates and builtin containers. pydantic's
models are known too where a handler has imported pydantic; the agent never does.
"""

from __future__ import annotations

import collections.abc
import inspect
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, Union, cast

import msgspec

from arc_protocol.codec import split_path

UNTYPED: Final = inspect.Parameter.empty
"""The type of params, or of a result, that may be anything."""

_RAW: Final = (
    bytes,
    bytearray,
    memoryview,
    Path,
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.Generator,
)
"""What is sent as it is, and not as JSON."""
UNIONS: Final = (Union, types.UnionType)


class Misfit(ValueError):
    """A value that is not of its type. `path` leads to the part that is wrong; empty: the whole."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path

    def under(self, name: str) -> str:
        """The message with the path, that of the whole being `name`: `params.items[2].price: …`."""
        dot = "" if not self.path or self.path.startswith("[") else "."
        return f"{name}{dot}{self.path}: {self.message}"


def is_anything(kind: Any) -> bool:
    """Whether a type says nothing about its values."""
    return kind in (UNTYPED, Any, object, NoReturn, typing.Never)


def is_raw(kind: Any) -> bool:
    """Whether values of a type are sent as they are, or may be: bytes, files, streams."""
    if typing.get_origin(kind) in UNIONS:
        return any(is_raw(each) for each in typing.get_args(kind))
    return (typing.get_origin(kind) or kind) in _RAW


def check(kind: Any) -> None:
    """See that JSON can be turned into a type. Raises TypeError, saying which part cannot be."""
    try:
        msgspec.json.Decoder(kind, dec_hook=_read_other)
        found = msgspec.inspect.type_info(kind)
    except Exception as error:  # msgspec raises whatever a strange annotation provokes
        raise TypeError(str(error) or type(error).__name__) from None
    _check_parts(found, set())


def read(value: Any, kind: Any) -> Any:
    """A JSON value as a type. Raises Misfit; and what a model's own code raises besides."""
    try:
        return msgspec.convert(value, kind, dec_hook=_read_other, str_keys=True)
    except msgspec.ValidationError as error:
        raise _misfit(error) from None
    except (RecursionError, OverflowError) as error:
        raise Misfit(str(error)) from None


def write(value: Any, kind: Any = UNTYPED) -> bytes:
    """A value as JSON, checked by its type; ASCII only: 1.x senders read answers as Latin-1.

    Raises Misfit for what is not of the type, or what JSON cannot say.
    """
    try:
        plain = msgspec.to_builtins(value, str_keys=True, enc_hook=_write_other)
        if not is_anything(kind):
            _check_written(value, plain, kind)
        return json.dumps(plain, allow_nan=False, separators=(",", ":")).encode("ascii")
    except msgspec.ValidationError as error:
        raise _misfit(error) from None
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, Misfit):
            raise
        raise Misfit(str(error)) from None


def schema(kind: Any, mode: Literal["validation", "serialization"]) -> dict[str, Any] | None:
    """The JSON Schema of a type; None when there is nothing to say. Raises for strange types."""
    if is_anything(kind) or is_raw(kind):
        return None
    definitions: dict[str, Any] = {}

    def of_other(other: Any) -> dict[str, Any]:
        if other is object:
            return {}
        prefix = f"{other.__name__}."
        made = other.model_json_schema(mode=mode, ref_template=f"#/$defs/{prefix}{{model}}")
        for name, definition in made.pop("$defs", {}).items():
            definitions[prefix + name] = definition
        return made

    made = msgspec.json.schema(kind, schema_hook=of_other)
    if definitions:
        made["$defs"] = {**made.get("$defs", {}), **definitions}
    return made


# pydantic


def _is_model(kind: Any) -> bool:
    """Whether a type is one of pydantic's models. Who has one has imported pydantic."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and inspect.isclass(kind) and issubclass(kind, pydantic.BaseModel)


def _read_other(kind: Any, value: Any) -> Any:
    """What msgspec asks for types that it does not know. Raises ValueError, NotImplementedError."""
    if _is_model(kind):
        return kind.model_validate(value)
    if kind is object:
        return value
    raise NotImplementedError


def _write_other(value: Any) -> Any:
    """The same in the other direction. Raises TypeError."""
    if _is_model(type(value)):
        return value.model_dump(mode="json", by_alias=True)
    raise TypeError(f"JSON cannot say what a {type(value).__name__} is")


def _take_other(kind: Any, value: Any) -> Any:
    """A part of a result that its own model has checked already."""
    return value if kind is object else kind.model_construct()


def _check_written(value: Any, plain: Any, kind: Any) -> None:
    """See whether what will be sent is of the type. Raises msgspec.ValidationError, Misfit."""
    if _is_model(kind):
        if not isinstance(value, kind):
            raise Misfit(f"Expected `{kind.__name__}`, got `{type(value).__name__}`")
        return
    msgspec.convert(plain, kind, dec_hook=_take_other, str_keys=True)


# What is wrong


def _misfit(error: msgspec.ValidationError) -> Misfit:
    """What msgspec says, and pydantic within it."""
    message, path = split_path(str(error))
    find = getattr(error.__cause__, "errors", None)
    if find is None:
        return Misfit(message, path or "")
    _, _, outer = str(error).rpartition(" - at `$")
    path = outer.rstrip("`").removeprefix(".") if " - at `$" in str(error) else ""
    found: list[dict[str, Any]] = find(include_url=False, include_input=False)
    for step in cast("tuple[int | str, ...]", found[0]["loc"]):
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return Misfit(f"{found[0]['msg']}{more}", path)


def _check_parts(found: Any, seen: set[int]) -> None:
    """Look for parts of a type that nobody can read. Raises TypeError."""
    if id(found) in seen:
        return
    seen.add(id(found))
    if isinstance(found, msgspec.inspect.CustomType):
        if found.cls is not object and not _is_model(found.cls):
            raise TypeError(
                f"{getattr(found.cls, '__name__', found.cls)} cannot be read from JSON: use a"
                " msgspec struct, a dataclass, a TypedDict, a pydantic model or dict"
            )
        return
    for name in getattr(found, "__struct_fields__", ()):
        part = getattr(found, name)
        for each in cast("tuple[Any, ...]", part) if isinstance(part, tuple) else (part,):
            if isinstance(each, msgspec.inspect.Type | msgspec.inspect.Field):
                _check_parts(each, seen)
