"""Schemas of params: a small part of JSON Schema, read strictly and safe to apply.

The keywords are `type`, `enum`, `const`, `pattern`, `minimum`, `maximum`, `minLength`, `maxLength`,
`properties`, `required`, `additionalProperties` (true, false or a schema), `items`, `minItems` and
`maxItems`, with the meaning of JSON Schema 2020-12. Every other keyword is refused: an ignored one
would allow params that its author believes to be forbidden.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import msgspec

from arc_agent.config.patterns import BadPattern, Pattern, compile_pattern

MAX_BYTES: Final = 1024 * 1024
"""Larger params are not read, and never fit."""
_MAX_DEPTH: Final = 32
_TYPES: Final[Mapping[str, Callable[[Any], bool]]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: _is_number(value),
    "integer": lambda value: _is_number(value) and value == math.floor(value),
}
_KEYWORDS: Final = (
    "type",
    "enum",
    "const",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "minItems",
    "maxItems",
)
_NOTES: Final = ("title", "description")
_ABSENT: Final = object()


class BadSchema(ValueError):
    """A schema is refused. `path` is the place in it, `message` the reason."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path
        self.message = message


class CannotJudge(Exception):
    """Params cannot be judged: two readers could understand them differently."""


class ParamsSchema(msgspec.Struct, frozen=True, kw_only=True):
    """A checked schema."""

    types: tuple[str, ...] | None = None
    values: tuple[Any, ...] | None = None
    """The values of `enum`, or the one of `const`."""
    pattern: Pattern | None = None
    pattern_text: str = ""
    minimum: float | None = None
    maximum: float | None = None
    lengths: tuple[int, float] = (0, math.inf)
    properties: Mapping[str, ParamsSchema] = {}
    required: tuple[str, ...] = ()
    other_properties: ParamsSchema | bool = True
    items: ParamsSchema | None = None
    item_counts: tuple[int, float] = (0, math.inf)


def read_params(data: bytes) -> Any:
    """Return params as a JSON value that every reader understands alike; no bytes are `{}`.

    Raises CannotJudge for params that are not UTF-8, not JSON, nested too deeply or too large, and
    for a name twice in an object, NaN and infinities.
    """
    if len(data) > MAX_BYTES:
        raise CannotJudge(f"the params have more than {MAX_BYTES} bytes")
    if not data:
        return {}
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except CannotJudge:
        raise
    except UnicodeDecodeError:
        raise CannotJudge("the params are not UTF-8") from None
    except (ValueError, RecursionError):
        raise CannotJudge("the params are not JSON") from None
    return value


def compile_schema(schema: Any, path: str = "") -> ParamsSchema:
    """Compile a schema. Raises BadSchema."""
    return _Reader().schema(schema, path, 0)


def misfit(schema: ParamsSchema, value: Any, path: str = "params") -> str | None:
    """Return why a value does not fit, with its place; None if it fits. Raises CannotJudge."""
    if schema.types is not None and not any(_TYPES[each](value) for each in schema.types):
        return f"{path}: is not of type {' or '.join(schema.types)}"
    if schema.values is not None and not any(_equal(value, each) for each in schema.values):
        return f"{path}: is none of the allowed values"
    if isinstance(value, str):
        return _misfit_of_text(schema, value, path)
    if _is_number(value):
        return _misfit_of_number(schema, value, path)
    if isinstance(value, dict):
        return _misfit_of_object(schema, cast("dict[str, Any]", value), path)
    if isinstance(value, list):
        return _misfit_of_array(schema, cast("list[Any]", value), path)
    return None


# Judging


def _misfit_of_text(schema: ParamsSchema, value: str, path: str) -> str | None:
    """Check a text's length and pattern."""
    least, most = schema.lengths
    if not least <= len(value) <= most:
        return f"{path}: has {len(value)} characters"
    if schema.pattern is None:
        return None
    if len(value) > schema.pattern.max_chars:
        raise CannotJudge(f"{path}: too long for its pattern; give it a maxLength")
    if schema.pattern.regex.search(value) is None:
        return f"{path}: does not match {schema.pattern_text}"
    return None


def _misfit_of_number(schema: ParamsSchema, value: float, path: str) -> str | None:
    """Check a number's bounds."""
    if schema.minimum is not None and value < schema.minimum:
        return f"{path}: is below {schema.minimum:g}"
    if schema.maximum is not None and value > schema.maximum:
        return f"{path}: is above {schema.maximum:g}"
    return None


def _misfit_of_object(schema: ParamsSchema, value: dict[str, Any], path: str) -> str | None:
    """Check an object's members."""
    for name in schema.required:
        if name not in value:
            return f"{path}.{name}: is missing"
    for name, inner in value.items():
        below = schema.properties.get(name, schema.other_properties)
        if below is False:
            return f"{path}: has a member that is not allowed"
        if isinstance(below, ParamsSchema):
            found = misfit(below, inner, f"{path}.{name}" if name in schema.properties else path)
            if found is not None:
                return found
    return None


def _misfit_of_array(schema: ParamsSchema, value: list[Any], path: str) -> str | None:
    """Check an array's items."""
    least, most = schema.item_counts
    if not least <= len(value) <= most:
        return f"{path}: has {len(value)} items"
    if schema.items is None:
        return None
    for index, inner in enumerate(value):
        found = misfit(schema.items, inner, f"{path}[{index}]")
        if found is not None:
            return found
    return None


def _equal(one: Any, other: Any) -> bool:
    """Return True if two JSON values are equal; 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        ones, others = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
        return ones.keys() == others.keys() and all(_equal(ones[n], others[n]) for n in ones)
    if isinstance(one, list) and isinstance(other, list):
        items, others_ = cast("list[Any]", one), cast("list[Any]", other)
        return len(items) == len(others_) and all(map(_equal, items, others_))
    return bool(one == other)


def _is_number(value: Any) -> bool:
    """Return True for a number of JSON. For Python, a boolean is a number too."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_json(value: Any) -> bool:
    """Return True for a value that JSON can express. YAML reads 2026-01-01 as a date."""
    if isinstance(value, dict):
        return all(map(_is_json, cast("dict[str, Any]", value).values()))
    if isinstance(value, list):
        return all(map(_is_json, cast("list[Any]", value)))
    return value is None or isinstance(value, str | int | float | bool)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object. Raises CannotJudge for a name that it has twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise CannotJudge("the params have the same name twice in an object")
    return found


def _no_constant(_: str) -> Any:
    """Refuse NaN, Infinity and -Infinity, which are not JSON. Raises ValueError."""
    raise ValueError


def _finite(text: str) -> float:
    """Return a number with a fraction or an exponent. Raises CannotJudge for infinity."""
    value = float(text)
    if not math.isfinite(value):
        raise CannotJudge("the params have a number that is too large")
    return value


# Reading a schema


class _Reader:
    """A reader of schemas, keyword by keyword."""

    def schema(self, given: Any, path: str, depth: int) -> ParamsSchema:
        """Read a schema. Raises BadSchema."""
        if not isinstance(given, dict):
            raise BadSchema(path, "must be a mapping")
        if depth > _MAX_DEPTH:
            raise BadSchema(path, f"nested more than {_MAX_DEPTH} levels deep")
        source = cast("dict[str, Any]", given)
        for name in source:
            if name not in _KEYWORDS and name not in _NOTES:
                raise BadSchema(
                    _at(path, name), f"unknown keyword; known are {', '.join(_KEYWORDS)}"
                )
        pattern = self._text(source, "pattern", path)
        try:
            compiled = None if pattern is None else compile_pattern(pattern)
        except BadPattern as error:
            raise BadSchema(_at(path, "pattern"), str(error)) from None
        items = source.get("items", _ABSENT)
        schema = ParamsSchema(
            types=self._types(source, path),
            values=self._values(source, path),
            pattern=compiled,
            pattern_text=pattern or "",
            minimum=self._number(source, "minimum", path),
            maximum=self._number(source, "maximum", path),
            lengths=self._bounds(source, "minLength", "maxLength", path),
            properties=self._properties(source, path, depth),
            required=self._names(source, "required", path),
            other_properties=self._others(source, path, depth),
            items=None if items is _ABSENT else self.schema(items, _at(path, "items"), depth + 1),
            item_counts=self._bounds(source, "minItems", "maxItems", path),
        )
        self._check_use(schema, source, path)
        return schema

    def _check_use(self, schema: ParamsSchema, source: dict[str, Any], path: str) -> None:
        """Require `type` beside a keyword that applies to one type: values of others would pass."""
        for keywords, kinds in (
            (("pattern", "minLength", "maxLength"), {"string"}),
            (("minimum", "maximum"), {"number", "integer"}),
            (("properties", "required", "additionalProperties"), {"object"}),
            (("items", "minItems", "maxItems"), {"array"}),
        ):
            used = next((name for name in keywords if name in source), None)
            if used is not None and not kinds & set(schema.types or ()):
                wanted = " or ".join(sorted(kinds))
                raise BadSchema(_at(path, used), f"needs type: {wanted} beside it")

    def _types(self, source: dict[str, Any], path: str) -> tuple[str, ...] | None:
        """Read `type`, one name or a list of names."""
        given = source.get("type", _ABSENT)
        if given is _ABSENT:
            return None
        names = cast("list[Any]", given) if isinstance(given, list) else [given]
        if not names or any(not isinstance(each, str) or each not in _TYPES for each in names):
            raise BadSchema(_at(path, "type"), f"must be of {', '.join(_TYPES)}")
        return tuple(names)

    def _values(self, source: dict[str, Any], path: str) -> tuple[Any, ...] | None:
        """Read `enum` or `const`."""
        if "enum" in source and "const" in source:
            raise BadSchema(_at(path, "const"), "beside enum")
        keyword = "const" if "const" in source else "enum"
        given = [source["const"]] if keyword == "const" else source.get("enum", _ABSENT)
        if given is _ABSENT:
            return None
        if not isinstance(given, list) or not given:
            raise BadSchema(_at(path, keyword), "must be a list of values")
        values = cast("list[Any]", given)
        if not all(map(_is_json, values)):
            raise BadSchema(_at(path, keyword), "not a JSON value: dates need quotes")
        return tuple(values)

    def _properties(self, source: dict[str, Any], path: str, depth: int) -> dict[str, ParamsSchema]:
        """Read `properties`."""
        given = source.get("properties", {})
        where = _at(path, "properties")
        if not isinstance(given, dict):
            raise BadSchema(where, "must be a mapping")
        return {
            name: self.schema(below, _at(where, name), depth + 1)
            for name, below in cast("dict[str, Any]", given).items()
        }

    def _others(self, source: dict[str, Any], path: str, depth: int) -> ParamsSchema | bool:
        """Read `additionalProperties`."""
        given = source.get("additionalProperties", True)
        if isinstance(given, bool):
            return given
        return self.schema(given, _at(path, "additionalProperties"), depth + 1)

    def _names(self, source: dict[str, Any], keyword: str, path: str) -> tuple[str, ...]:
        """Read a list of texts."""
        given = source.get(keyword, [])
        if not isinstance(given, list) or any(
            not isinstance(each, str) for each in cast("list[Any]", given)
        ):
            raise BadSchema(_at(path, keyword), "must be a list of names")
        return tuple(cast("list[str]", given))

    def _text(self, source: dict[str, Any], keyword: str, path: str) -> str | None:
        """Read a text; None if the keyword is absent."""
        given = source.get(keyword, _ABSENT)
        if given is _ABSENT:
            return None
        if not isinstance(given, str):
            raise BadSchema(_at(path, keyword), "must be a text")
        return given

    def _number(self, source: dict[str, Any], keyword: str, path: str) -> float | None:
        """Read a number; None if the keyword is absent."""
        given = source.get(keyword, _ABSENT)
        if given is _ABSENT:
            return None
        if not _is_number(given) or not math.isfinite(given):
            raise BadSchema(_at(path, keyword), "must be a number")
        return cast("float", given)

    def _bounds(
        self, source: dict[str, Any], least: str, most: str, path: str
    ) -> tuple[int, float]:
        """Read the bounds of a count."""
        for keyword in (least, most):
            value = self._number(source, keyword, path)
            if value is not None and (value < 0 or not isinstance(source[keyword], int)):
                raise BadSchema(_at(path, keyword), "must be a count")
        return source.get(least, 0), source.get(most, math.inf)


def _at(path: str, name: str) -> str:
    """Return the path of a name below another path."""
    return f"{path}.{name}" if path else name
