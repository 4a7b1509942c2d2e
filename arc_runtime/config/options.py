"""Options are the keys of a configuration class: path, variable, type, default, description.

A configuration class is a section whose fields are values or further sections.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, cast

import msgspec
from msgspec import inspect

REQUIRED: Final = msgspec.NODEFAULT
"""The default of a key that must be given."""

_LISTS: Final = (
    inspect.ListType,
    inspect.VarTupleType,
    inspect.SetType,
    inspect.FrozenSetType,
)


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key is one configurable value."""

    path: str
    """Dotted: `leases.max_seconds`. `[]` stands for each item of a list, which has no variable."""
    variable: str | None
    type: inspect.Type
    default: Any
    description: str


def keys(kind: type[msgspec.Struct], prefix: str) -> list[Key]:
    """Return every key of `kind`, in the order of the class.

    `prefix` begins their variables: ARC_SERVER. Raises TypeError for a class that cannot work, such
    as two keys with one variable.
    """
    found = list(_walk(_struct(kind), "", prefix.rstrip("_")))
    by_variable: dict[str, str] = {}
    for key in found:
        if key.variable is None:
            continue
        other = by_variable.setdefault(key.variable, key.path)
        if other != key.path:
            raise TypeError(f"{key.path} and {other} have the same variable {key.variable}")
    return found


def members(kind: inspect.Type) -> list[inspect.Type]:
    """Return the alternatives of a type without their descriptions, None left out."""
    if isinstance(kind, inspect.Metadata):
        return members(kind.type)
    if isinstance(kind, inspect.UnionType):
        return [member for alternative in kind.types for member in members(alternative)]
    return [] if isinstance(kind, inspect.NoneType) else [kind]


def is_optional(kind: inspect.Type) -> bool:
    """Return True if the value may be None."""
    if isinstance(kind, inspect.Metadata):
        return is_optional(kind.type)
    if isinstance(kind, inspect.UnionType):
        return any(is_optional(alternative) for alternative in kind.types)
    return isinstance(kind, inspect.NoneType | inspect.AnyType)


def section(kind: inspect.Type) -> inspect.StructType | None:
    """Return the struct that a type stands for; None for a plain value."""
    alternatives = members(kind)
    first = alternatives[0] if len(alternatives) == 1 else None
    return first if isinstance(first, inspect.StructType) else None


def item_type(kind: inspect.Type) -> inspect.Type | None:
    """Return the type of a list's items; None for anything else."""
    for member in members(kind):
        if isinstance(member, _LISTS):
            return member.item_type
    return None


def value_type(kind: inspect.Type) -> inspect.Type | None:
    """Return the type of a free mapping's values; None for anything else."""
    for member in members(kind):
        if isinstance(member, inspect.DictType):
            return member.value_type
    return None


def describe(kind: inspect.Type) -> str:
    """Return a type in words: `int, 1 to 3600`, `list of text`, `"a" or "b"`."""
    return " or ".join(dict.fromkeys(_describe(member) for member in members(kind)))


def show_default(value: Any) -> str:
    """Return a default as YAML; empty for None, `required` where there is none."""
    if value is REQUIRED:
        return "required"
    if value is None:
        return ""
    plain = msgspec.to_builtins(value, enc_hook=str)
    return plain if isinstance(plain, str) and plain else json.dumps(plain, ensure_ascii=False)


def _struct(kind: type[msgspec.Struct]) -> inspect.StructType:
    """Return msgspec's description of a class."""
    return cast("inspect.StructType", inspect.type_info(kind))


def _walk(kind: inspect.StructType, path: str, prefix: str | None) -> Iterator[Key]:
    """Yield the keys below `path`.

    Raises TypeError when a section's default differs from its class's own: it would be lost as soon
    as one key of the section is set.
    """
    for field in kind.fields:
        name, default = field.encode_name, _default(field)
        below = f"{path}.{name}" if path else name
        variable = f"{prefix}_{name.upper()}" if prefix else None
        inner = section(field.type)
        if inner is not None:
            if isinstance(default, inner.cls) and default != inner.cls():
                raise TypeError(f"{below}: a section's default must be {inner.cls.__name__}()")
            yield from _walk(inner, below, variable)
            continue
        yield Key(
            path=below,
            variable=variable,
            type=field.type,
            default=default,
            description=_description(field.type),
        )
        items = item_type(field.type)
        each = section(items) if items is not None else None
        if each is not None:
            yield from _walk(each, f"{below}[]", None)


def _default(field: inspect.Field) -> Any:
    """Return a field's default, made by its factory if it has one; REQUIRED without a default."""
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def _description(kind: inspect.Type) -> str:
    """Return the description of a type, its own or that of an alternative."""
    if isinstance(kind, inspect.Metadata):
        schema = cast("dict[str, str]", kind.extra_json_schema or {})  # pyright: ignore[reportUnknownMemberType]
        return schema.get("description") or _description(kind.type)
    if isinstance(kind, inspect.UnionType):
        return next((found for found in map(_description, kind.types) if found), "")
    return ""


def _describe(kind: inspect.Type) -> str:
    """Return one alternative in words."""
    match kind:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType():
            return ("int" if isinstance(kind, inspect.IntType) else "number") + _bounds(kind)
        case inspect.StrType():
            return "text"
        case inspect.EnumType():
            return " or ".join(f'"{member.value}"' for member in kind.cls)
        case inspect.LiteralType():
            return " or ".join(json.dumps(value) for value in kind.values)
        case inspect.CustomType():
            return kind.cls.__name__.lower()
        case inspect.DictType():
            return f"mapping of {describe(kind.value_type)}"
        case inspect.StructType():
            return "mapping"
        case _:
            items = item_type(kind)
            if items is None:
                return "any"
            return "list of mappings" if section(items) else f"list of {describe(items)}"


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    """Return `, 1 to 3600`, `, at least 1`, or nothing without a bound."""
    if kind.ge is not None and kind.le is not None:
        return f", {kind.ge} to {kind.le}"
    parts = [
        f"{words} {bound}"
        for words, bound in (
            ("at least", kind.ge),
            ("more than", kind.gt),
            ("at most", kind.le),
            ("less than", kind.lt),
        )
        if bound is not None
    ]
    return f", {', '.join(parts)}" if parts else ""
