"""The types of params and results: reading them from JSON, writing them to it, and JSON Schema.

msgspec converts structs, dataclasses, TypedDicts, enums, dates and builtin containers. Models of
pydantic work where a handler has imported pydantic; the agent itself never imports it.
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
"""The type of params or results without a declared type."""

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
"""Types that are sent as bytes, not as JSON."""
UNIONS: Final = (Union, types.UnionType)


_ENCODE: Final = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode

_SURROGATE: Final = "\\ud"
"""The escape of a surrogate begins so, a lone one or one of a pair."""


class Misfit(ValueError):
    """A value does not have its type. `path` leads to the wrong part; empty for the whole value."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path

    def under(self, name: str) -> str:
        """Return the message after its path below `name`: `params.items[2].price: …`."""
        dot = "" if not self.path or self.path.startswith("[") else "."
        return f"{name}{dot}{self.path}: {self.message}"


def is_anything(kind: Any) -> bool:
    """Return True if every value has this type."""
    return kind in (UNTYPED, Any, object, NoReturn, typing.Never)


def is_raw(kind: Any) -> bool:
    """Return True if values of a type may be sent as bytes, not as JSON: bytes, files, streams."""
    if typing.get_origin(kind) in UNIONS:
        return any(is_raw(each) for each in typing.get_args(kind))
    return (typing.get_origin(kind) or kind) in _RAW


def check(kind: Any) -> None:
    """Check that a type can be read from JSON. Raises TypeError, which names the part."""
    try:
        msgspec.json.Decoder(kind, dec_hook=_read_other)
        found = msgspec.inspect.type_info(kind)
    except Exception as error:  # a strange annotation makes msgspec raise anything
        raise TypeError(str(error) or type(error).__name__) from None
    _check_parts(found, set())


def read(value: Any, kind: Any) -> Any:
    """Return a JSON value as a type. Raises Misfit, and exceptions of a model's code."""
    try:
        return msgspec.convert(value, kind, dec_hook=_read_other, str_keys=True)
    except msgspec.ValidationError as error:
        raise _misfit(error) from None
    except (RecursionError, OverflowError) as error:
        raise Misfit(str(error)) from None


def write(value: Any, kind: Any = UNTYPED) -> bytes:
    """Return a value as JSON, checked against its type.

    The JSON is ASCII, because 1.x senders read results as Latin-1. Raises Misfit for a value of
    another type, one that JSON cannot express, or text that is no Unicode.
    """
    try:
        plain = msgspec.to_builtins(value, str_keys=True, enc_hook=_write_other)
        if not is_anything(kind):
            _check_written(value, plain, kind)
        text = _ENCODE(plain)
        if _SURROGATE in text:
            _check_unicode(plain)
        return text.encode("ascii")
    except msgspec.ValidationError as error:
        raise _misfit(error) from None
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, Misfit):
            raise
        raise Misfit(str(error)) from None


def schema(kind: Any, mode: Literal["validation", "serialization"]) -> dict[str, Any] | None:
    """Return the JSON Schema of a type; None without a schema. Raises any exception of a model."""
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
    """Return True if a type is a model of pydantic. A handler with a model has imported it."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and inspect.isclass(kind) and issubclass(kind, pydantic.BaseModel)


def _read_other(kind: Any, value: Any) -> Any:
    """Read a type that msgspec does not know. Raises ValueError, NotImplementedError."""
    if _is_model(kind):
        return kind.model_validate(value)
    if kind is object:
        return value
    raise NotImplementedError


def _write_other(value: Any) -> Any:
    """Write a type that msgspec does not know. Raises TypeError."""
    if _is_model(type(value)):
        return value.model_dump(mode="json", by_alias=True)
    raise TypeError(f"a value of the type {type(value).__name__} cannot be written as JSON")


def _take_other(kind: Any, value: Any) -> Any:
    """Accept a part of a result: its model has checked it already."""
    return value if kind is object else kind.model_construct()


def _check_written(value: Any, plain: Any, kind: Any) -> None:
    """Check the JSON of a result against its type. Raises msgspec.ValidationError, Misfit."""
    if _is_model(kind):
        if not isinstance(value, kind):
            raise Misfit(f"Expected `{kind.__name__}`, got `{type(value).__name__}`")
        return
    msgspec.convert(plain, kind, dec_hook=_take_other, str_keys=True)


def _check_unicode(value: Any, path: str = "") -> None:
    """Raise Misfit for a lone surrogate, as in file names that are no UTF-8: no reader takes it."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Misfit("the text is no Unicode: it has a lone surrogate", path) from None
    elif isinstance(value, dict):
        for key, part in cast("dict[str, Any]", value).items():
            name = key.encode("utf-8", "backslashreplace").decode()
            inner = f"{path}.{name}" if path else name
            _check_unicode(key, inner)
            _check_unicode(part, inner)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(cast("list[Any]", value)):
            _check_unicode(part, f"{path}[{index}]")


# Errors


def _misfit(error: msgspec.ValidationError) -> Misfit:
    """Return the error of msgspec, or of pydantic inside it."""
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
    """Raise TypeError for a type with parts that cannot be read from JSON."""
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
