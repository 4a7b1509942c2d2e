"""The params of handlers that YAML declares: their schemas, and the placeholders for them.

A param has a name and a schema, and is required unless it has a `default`. A placeholder,
`{params.NAME}`, is always a whole argument, path segment or value. Its schema must bound the
values, so that the host's configuration alone decides what a sender can reach.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

import msgspec

from arc_agent.config.params_schema import (
    BadSchema,
    CannotJudge,
    ParamsSchema,
    compile_schema,
    misfit,
    read_params,
)
from arc_agent.handlers.context import CommandFailed
from arc_agent.handlers.registry import HandlerError

INVALID_PARAMS: Final = "INVALID_PARAMS"
MAX_TEXT_CHARS: Final = 4096
"""The largest maxLength of a text in an argument or a path."""
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_PLACEHOLDER: Final = re.compile(r"\{params\.([^{}]*)\}")
_NUMBERS: Final = ("integer", "number")


class Param(msgspec.Struct, frozen=True, kw_only=True):
    """A declared param."""

    name: str
    key: str
    """The path of its schema in the configuration."""
    schema: ParamsSchema
    has_default: bool
    default: Any


class Params(msgspec.Struct, frozen=True, kw_only=True):
    """The declared params of a handler."""

    key: str
    by_name: Mapping[str, Param]
    advertised: dict[str, Any]
    """The JSON Schema of all params, for senders."""

    def read(self, data: bytes) -> dict[str, Any]:
        """Return the values by name, with defaults. Raises CommandFailed INVALID_PARAMS."""
        try:
            value = read_params(data)
            given: Any = value if value is not None else cast("Any", {})
            if not isinstance(given, dict):
                raise CommandFailed(INVALID_PARAMS, "params: is not of type object")
            values = dict(self._checked(cast("dict[str, Any]", given)))
        except CannotJudge as error:
            raise CommandFailed(INVALID_PARAMS, str(error)) from None
        return values

    def _checked(self, given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield name and value of each param. Raises CommandFailed, CannotJudge."""
        for name in given:
            if name not in self.by_name:
                raise CommandFailed(INVALID_PARAMS, "params: has a member that is not allowed")
        for name, param in self.by_name.items():
            if name not in given:
                if not param.has_default:
                    raise CommandFailed(INVALID_PARAMS, f"params.{name}: is missing")
                yield name, param.default
                continue
            problem = misfit(param.schema, given[name], f"params.{name}")
            if problem is not None:
                raise CommandFailed(INVALID_PARAMS, problem)
            yield name, given[name]

    def placeholder(self, text: str, key: str) -> Param | None:
        """Return the param of a placeholder; None for other text.

        Raises HandlerError for a placeholder inside a longer text, or of an unknown param.
        """
        if "{params." not in text:
            return None
        found = _PLACEHOLDER.fullmatch(text)
        if found is None:
            raise HandlerError(f"{key}: a placeholder must be the whole value: {{params.NAME}}")
        param = self.by_name.get(found[1])
        if param is None:
            raise HandlerError(f"{key}: {self.key} has no {found[1]!r}")
        return param

    def refuse_unused(self, used: set[str]) -> None:
        """Raise HandlerError for a param without a placeholder, which is mostly a typing error."""
        for name, param in self.by_name.items():
            if name not in used:
                raise HandlerError(f"{param.key}: is not used anywhere")


def declare(given: Mapping[str, Any], key: str) -> Params:
    """Read the `params` of a section at `key`. Raises HandlerError, which names the path."""
    by_name: dict[str, Param] = {}
    shown: dict[str, Any] = {}
    for name, source in given.items():
        where = f"{key}.{name}"
        if not _NAME.fullmatch(name):
            raise HandlerError(f"{where}: a name is of letters, digits and `_`")
        if not isinstance(source, dict):
            raise HandlerError(f"{where}: must be a mapping, a JSON Schema")
        schema = dict(cast("dict[str, Any]", source))
        has_default = "default" in schema
        default = schema.pop("default", None)
        try:
            compiled = compile_schema(schema, where)
            problem = misfit(compiled, default, f"{where}.default") if has_default else None
        except (BadSchema, CannotJudge) as error:
            raise HandlerError(str(error)) from None
        if problem is not None:
            raise HandlerError(problem)
        by_name[name] = Param(
            name=name, key=where, schema=compiled, has_default=has_default, default=default
        )
        shown[name] = source
    advertised: dict[str, Any] = {
        "type": "object",
        "properties": shown,
        "additionalProperties": False,
    }
    required = [name for name, param in by_name.items() if not param.has_default]
    if required:
        advertised["required"] = required
    return Params(key=key, by_name=by_name, advertised=advertised)


# The bounds that a schema must have


def check_bounded(param: Param) -> None:
    """Check that values are bounded, for a JSON body or a statement. Raises HandlerError."""
    _check_bounded(param.schema, param.key)


def check_scalar(param: Param) -> None:
    """Check that values are bounded scalars, for a path or a query. Raises HandlerError."""
    check_bounded(param)
    _kind(param)


def check_argument(param: Param, *, is_after_dashes: bool) -> Callable[[Any], str]:
    """Return the maker of an argument from a value. Raises HandlerError for a loose schema.

    A text needs `enum`, or `maxLength` and a `pattern` from `^` to `$` that matches all of it.
    Before `--`, a text must not begin with a hyphen, or the program would read it as an option. An
    `enum`, or a pattern that begins with `^-`, allows it. Nor may a number be negative there,
    unless an `enum` lists it.
    """
    check_scalar(param)
    kind, schema = _kind(param), param.schema
    if kind in _NUMBERS and not is_after_dashes and (schema.minimum or 0) < 0:
        raise HandlerError(
            f"{param.key}.minimum: a program would read a negative number as an option;"
            " put `--` before it in argv, or list the numbers in an enum"
        )
    if kind != "string" or schema.values is not None:
        return as_text
    pattern = schema.pattern
    if pattern is None:
        raise HandlerError(f"{param.key}.pattern: an argument needs one, or an enum")
    text = schema.pattern_text
    if not (text.startswith("^") and text.endswith("$") and not text.endswith("\\$")):
        raise HandlerError(f"{param.key}.pattern: an argument needs one from ^ to $")
    may_be_option = is_after_dashes or text.startswith("^-")

    def argument(value: Any) -> str:
        if "\0" in value or pattern.regex.fullmatch(value) is None:
            raise CommandFailed(INVALID_PARAMS, f"params.{param.name}: does not match {text}")
        if value.startswith("-") and not may_be_option:
            raise CommandFailed(INVALID_PARAMS, f"params.{param.name}: begins with a hyphen")
        return value

    if param.has_default:
        try:
            argument(param.default)
        except CommandFailed as error:
            raise HandlerError(f"{param.key}.default: {error.message.partition(': ')[2]}") from None
    return argument


def as_text(value: Any) -> str:
    """Return a scalar as text for a program or a URL."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _kind(param: Param) -> str:
    """Return the one scalar type of a param. Raises HandlerError for none or several."""
    schema = param.schema
    if schema.types is None and schema.values is not None:
        kinds = {_kind_of(value) for value in schema.values}
    else:
        kinds = set(schema.types or ())
    if len(kinds) != 1 or not kinds <= {"string", "boolean", *_NUMBERS}:
        raise HandlerError(f"{param.key}.type: must be one of string, integer, number, boolean")
    if any(isinstance(each, str) and "\0" in each for each in schema.values or ()):
        raise HandlerError(f"{param.key}.enum: a value with a NUL in it")
    return kinds.pop()


def _kind_of(value: Any) -> str:
    """Return the type of a value of an enum."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "other"


def _check_bounded(schema: ParamsSchema, key: str) -> None:
    """Check that a schema bounds the size of its values. Raises HandlerError."""
    if schema.values is not None:
        return
    if schema.types is None:
        raise HandlerError(f"{key}.type: is required where a placeholder uses it")
    for kind in schema.types:
        if kind == "string" and schema.lengths[1] > MAX_TEXT_CHARS:
            raise HandlerError(f"{key}.maxLength: is required, {MAX_TEXT_CHARS} at most (or enum)")
        if kind == "string" and schema.pattern and schema.lengths[1] > schema.pattern.max_chars:
            most = schema.pattern.max_chars
            raise HandlerError(f"{key}.maxLength: {most} at most, because this pattern is slow")
        if kind in _NUMBERS and (schema.minimum is None or schema.maximum is None):
            raise HandlerError(f"{key}: minimum and maximum are required (or enum)")
        if kind == "array":
            if schema.items is None or schema.item_counts[1] > MAX_TEXT_CHARS:
                raise HandlerError(f"{key}: items and maxItems ({MAX_TEXT_CHARS}) are required")
            _check_bounded(schema.items, f"{key}.items")
        if kind == "object":
            if schema.other_properties is not False:
                raise HandlerError(f"{key}.additionalProperties: must be false")
            for name, below in schema.properties.items():
                _check_bounded(below, f"{key}.properties.{name}")
