"""Settings are loaded from defaults, a YAML file, the environment and the command line.

A later source wins. Every error names the key by its path and says where the value came from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import msgspec
from msgspec import inspect

from arc_runtime.config.explanations import explain
from arc_runtime.config.options import (
    Key,
    describe,
    is_optional,
    item_type,
    keys,
    members,
    section,
    show_default,
    value_type,
)
from arc_runtime.config.yaml_file import YamlError, parse_yaml, read_yaml
from arc_runtime.startup.late_module import late_module

if TYPE_CHECKING:
    import difflib
else:
    difflib = late_module("difflib")  # only an unknown key needs it

T = TypeVar("T", bound=msgspec.Struct)

_COMMAND_LINE: Final = "the command line"
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}")
_KUBERNETES: Final = re.compile(
    r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?"
)
"""Kubernetes puts these variables into every pod for a service `arc-server`: they are no keys."""


class SettingsError(Exception):
    """A configuration cannot be used. The text is fit for a terminal, and quotes no value.

    `key` is the path of the key, None for a whole source; `source` is the file, the variable or the
    command line.
    """

    def __init__(self, message: str, *, key: str | None, source: str | None) -> None:
        where = f" (from {source})" if source and key else ""
        start = key or source
        super().__init__(f"{start}: {message}{where}" if start else message)
        self.key = key
        self.source = source


def load(
    kind: type[T],
    *,
    prefix: str,
    file: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, Any] | None = None,
    ignore: Collection[str] = (),
) -> T:
    """Return the configuration of class `kind`.

    A key `leases.max_seconds` is overridden by the variable `{prefix}_LEASES_MAX_SECONDS`, read as
    its type asks for, and both by `overrides["leases.max_seconds"]`: text is read like a
    variable's, None counts as absent. A variable of the prefix that belongs to no key is refused
    unless `ignore` names it.

    Raises SettingsError for a key that is unknown, unreadable or out of bounds.
    """
    known = {key.path: key for key in keys(kind, prefix) if key.variable is not None}
    sources: dict[str, str] = {}
    name = str(file) if file is not None else None
    tree = _normal(_read(file), cast("inspect.StructType", inspect.type_info(kind)), "", name)
    for path, value, source in (
        *_from_environment(known, prefix.rstrip("_"), environ, ignore),
        *_from_command_line(known, overrides or {}),
    ):
        _put(tree, path, _normal(value, known[path].type, path, source), name)
        sources[path] = source

    def convert(tree: Any) -> T:
        return msgspec.convert(tree, kind, dec_hook=_from_text)

    try:
        return convert(tree)
    except msgspec.ValidationError as error:
        key, message = explain(str(error), tree, kind, convert)
        raise SettingsError(message, key=key, source=_source_of(key, sources, name)) from None


def reference(kind: type[msgspec.Struct], prefix: str) -> str:
    """Return the keys as a Markdown table: key, variable, type, default, description."""
    rows = [
        "| key | environment variable | type | default | |",
        "|---|---|---|---|---|",
    ]
    for key in keys(kind, prefix):
        variable = f"`{key.variable}`" if key.variable else ""
        shown = show_default(key.default)
        default = f"`{shown}`" if shown and shown != "required" else shown
        cells = (f"`{key.path}`", variable, describe(key.type), default, key.description)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


# Sources


def _read(file: Path | None) -> Any:
    """Return the file's document, an empty mapping for an empty one. Raises SettingsError."""
    if file is None:
        return {}
    try:
        document = read_yaml(file)
    except YamlError as error:
        raise SettingsError(str(error), key=None, source=str(file)) from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise SettingsError("must be a mapping of keys", key=None, source=str(file))
    return cast("dict[str, Any]", document)


def _from_environment(
    known: Mapping[str, Key], prefix: str, environ: Mapping[str, str], ignore: Collection[str]
) -> Iterable[tuple[str, Any, str]]:
    """Yield path, value and source of every variable of the prefix. Raises SettingsError."""
    by_variable = {key.variable: key for key in known.values() if key.variable}
    for variable in sorted(environ):
        if not variable.startswith(f"{prefix}_") or variable in ignore:
            continue
        key = by_variable.get(variable)
        if key is not None:
            source = f"the environment variable {variable}"
            yield key.path, _parse(environ[variable], key.type, key.path, source), source
        elif not _KUBERNETES.fullmatch(variable.removeprefix(f"{prefix}_")):
            raise SettingsError(
                "unknown environment variable" + _hint(variable, by_variable),
                key=None,
                source=variable,
            )


def _from_command_line(
    known: Mapping[str, Key], overrides: Mapping[str, Any]
) -> Iterable[tuple[str, Any, str]]:
    """Yield path, value and source of every override that is given. Raises SettingsError."""
    for path, value in overrides.items():
        if value is None:
            continue
        key = known.get(path)
        if key is None:
            raise SettingsError(f"unknown key{_hint(path, known)}", key=path, source=_COMMAND_LINE)
        is_text = isinstance(value, str)
        yield (
            path,
            _parse(value, key.type, path, _COMMAND_LINE) if is_text else value,
            _COMMAND_LINE,
        )


def _parse(text: str, kind: inspect.Type, path: str, source: str) -> Any:
    """Return a variable's text as its type asks for; bounds are checked later."""
    if not text and is_optional(kind):
        return None
    alternatives = members(kind)
    if any(_is_textual(member) for member in alternatives):
        return text
    for member in alternatives:
        if isinstance(member, inspect.BoolType) and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if isinstance(member, inspect.IntType | inspect.LiteralType) and _INTEGER.fullmatch(text):
            return int(text)
        if isinstance(member, inspect.FloatType):
            try:
                return float(text)
            except ValueError:
                continue
    items = item_type(kind)
    if items is not None and section(items) is None and not text.lstrip().startswith("["):
        parts = (part.strip() for part in text.split(","))
        return [_parse(part, items, path, source) for part in parts if part]
    if items is None and value_type(kind) is None:
        raise SettingsError(f"Expected {describe(kind)}", key=path, source=source)
    try:
        return parse_yaml(text)
    except YamlError as error:
        raise SettingsError(str(error), key=path, source=source) from None


def _is_textual(kind: inspect.Type) -> bool:
    """Return True if a type takes text as it is."""
    if isinstance(kind, inspect.LiteralType):
        return isinstance(kind.values[0], str)
    return isinstance(kind, inspect.StrType | inspect.EnumType | inspect.CustomType)


# Checking and merging


def _normal(value: Any, kind: inspect.Type, path: str, source: str | None) -> Any:
    """Return a copy of `value` with empty sections filled in.

    Raises SettingsError for an unknown key and for NaN.
    """
    struct = section(kind)
    if struct is not None and value is None and not is_optional(kind):
        return {}
    if isinstance(value, dict):
        return {
            name: _normal(inner, below, _join(path, name), source)
            for name, inner, below in _entries(
                cast("dict[str, Any]", value), kind, struct, path, source
            )
        }
    items = item_type(kind)
    if isinstance(value, list | tuple) and items is not None:
        return [
            _normal(inner, items, f"{path}[{index}]", source)
            for index, inner in enumerate(cast("list[Any]", value))
        ]
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError("Expected a finite number", key=path, source=source)
    return cast("Any", value)


def _entries(
    value: dict[str, Any],
    kind: inspect.Type,
    struct: inspect.StructType | None,
    path: str,
    source: str | None,
) -> Iterable[tuple[str, Any, inspect.Type]]:
    """Yield name, value and type of each entry. Raises SettingsError for an unknown name."""
    if struct is None:
        below = value_type(kind) or inspect.AnyType()
        yield from ((name, inner, below) for name, inner in value.items())
        return
    types = {field.encode_name: field.type for field in struct.fields}
    for name, inner in value.items():
        if name not in types:
            raise SettingsError(
                f"unknown key{_hint(name, types)}", key=_join(path, name), source=source
            )
        yield name, inner, types[name]


def _put(tree: dict[str, Any], path: str, value: Any, file: str | None) -> None:
    """Set a dotted key, and make the sections on the way. Raises SettingsError."""
    *sections, last = path.split(".")
    for depth, name in enumerate(sections):
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if type(tree) is not dict:
            raise SettingsError(
                "Expected a section of keys", key=".".join(sections[: depth + 1]), source=file
            )
    tree[last] = value


def _from_text(kind: type[Any], value: Any) -> Any:
    """Return a path from text: a type that msgspec does not know. Raises ValueError."""
    if not issubclass(kind, Path):
        raise TypeError(f"settings of type {kind.__name__} are not supported")
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("Expected a path")
    return kind(value)


def _source_of(key: str | None, sources: Mapping[str, str], file: str | None) -> str | None:
    """Return where the value of a key, or of its section, came from."""
    for path, source in sources.items():
        if key is not None and re.match(re.escape(path) + r"(?![\w-])", key):
            return source
    return file


def _join(path: str, name: str) -> str:
    """Return `leases` and `max_seconds` as one path."""
    return f"{path}.{name}" if path else name


def _hint(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean max_seconds?` if a known name is close, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
