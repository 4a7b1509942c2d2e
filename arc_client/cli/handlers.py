"""The handlers of all agents, for `arc describe` and `arc agents --handlers`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from arc_protocol.messages.agents import AgentInfo, HandlerInfo

Schema = Mapping[str, Any]

MAX_ROWS: Final = 200
"""The longest table of one schema."""
_MAX_DEPTH: Final = 5
"""Levels of a schema that the table shows; `--json` shows all of it."""
_MAX_TYPE_CHARS: Final = 60
_BOUNDS: Final = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} long",
    "maxLength": "at most {} long",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "like {}",
    "format": "{}",
}


class Offer(msgspec.Struct, frozen=True):
    """An offer is a handler as some agents of a deployment have it."""

    deployment_id: str
    handler: HandlerInfo
    agents: Sequence[AgentInfo]
    """The agents whose handler is exactly this, the last seen first."""


class SchemaRow(msgspec.Struct, frozen=True):
    """A schema row is one field of a schema, for a table."""

    path: str
    type: str
    is_required: bool
    default: str
    about: str


def offers(agents: Iterable[AgentInfo], command: str | None = None) -> list[Offer]:
    """Return the handlers by deployment and name; agents with equal handlers share an offer."""
    found: dict[tuple[str, str, bytes], list[tuple[AgentInfo, HandlerInfo]]] = {}
    for agent in agents:
        for handler in agent.handlers:
            if command in (None, handler.name):
                key = (agent.deployment_id, handler.name, msgspec.json.encode(handler))
                found.setdefault(key, []).append((agent, handler))
    made = [
        Offer(
            deployment_id=deployment_id,
            handler=both[0][1],
            agents=sorted((agent for agent, _ in both), key=lambda a: a.last_seen_at, reverse=True),
        )
        for (deployment_id, _, _), both in found.items()
    ]
    made.sort(key=lambda each: (each.deployment_id, each.handler.name, -len(each.agents)))
    return made


def rows_of(schema: Schema) -> list[SchemaRow]:
    """Return the fields of a schema, nested ones by their paths (`items[].price`)."""
    rows: list[SchemaRow] = []
    for row in _rows(schema, schema, "", is_required=True, depth=0):
        if len(rows) == MAX_ROWS:
            break
        rows.append(row)
    return rows


def _rows(
    root: Schema, schema: Any, path: str, *, is_required: bool, depth: int
) -> Iterator[SchemaRow]:
    """Yield a row for a schema, unless it is the root and an object; then its fields' rows."""
    resolved = _resolved(root, schema)
    fields = _mapping(resolved.get("properties"))
    items = resolved.get("items")
    if path or not fields:
        yield SchemaRow(
            path or "(all of it)",
            _type_of(root, resolved),
            is_required,
            json.dumps(resolved["default"], ensure_ascii=False) if "default" in resolved else "",
            _about(resolved),
        )
    if depth >= _MAX_DEPTH:
        return
    required = cast("list[Any]", resolved.get("required") or [])
    for name, inner in fields.items():
        yield from _rows(
            root,
            inner,
            f"{path}.{name}" if path else name,
            is_required=name in required,
            depth=depth + 1,
        )
    for inner, mark in ((items, "[]"), (resolved.get("additionalProperties"), ".*")):
        within = _resolved(root, inner)
        if within.get("properties") or within.get("items"):
            for row in _rows(root, inner, f"{path}{mark}", is_required=True, depth=depth + 1):
                if row.path != f"{path}{mark}":
                    yield row


def _resolved(root: Schema, schema: Any) -> Schema:
    """Return a schema with its `$ref` followed; keys beside the `$ref` win."""
    found = _mapping(schema)
    seen = 0
    while isinstance(reference := found.get("$ref"), str) and seen < _MAX_DEPTH:
        seen += 1
        name = reference.removeprefix("#/$defs/")
        beside = {key: value for key, value in found.items() if key not in ("$ref", "$defs")}
        found = {**_mapping(_mapping(root.get("$defs")).get(name)), **beside}
    return found


def _type_of(root: Schema, schema: Schema) -> str:
    """Return the type of a value in a few words: `list of string`, `integer or null`."""
    text = _whole_type(root, schema, 0)
    return text if len(text) <= _MAX_TYPE_CHARS else f"{text[: _MAX_TYPE_CHARS - 1]}…"


def _whole_type(root: Schema, schema: Schema, depth: int) -> str:
    """Return the type of a value in words of any length."""
    if "enum" in schema:
        values = cast("Iterable[Any]", schema["enum"])
        return " | ".join(json.dumps(each, ensure_ascii=False) for each in values)
    if "const" in schema:
        return json.dumps(schema["const"], ensure_ascii=False)
    choices = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(choices, list) and depth < _MAX_DEPTH:
        parts = cast("list[Any]", choices)
        return " or ".join(_whole_type(root, _resolved(root, part), depth + 1) for part in parts)
    kind = schema.get("type", "anything")
    if isinstance(kind, list):
        return " or ".join(map(str, cast("list[Any]", kind)))
    if depth < _MAX_DEPTH and kind == "array" and schema.get("items"):
        return f"list of {_whole_type(root, _resolved(root, schema['items']), depth + 1)}"
    values = schema.get("additionalProperties")
    if depth < _MAX_DEPTH and kind == "object" and values and isinstance(values, dict):
        return f"object of {_whole_type(root, _resolved(root, values), depth + 1)}"
    return str(kind)


def _about(schema: Schema) -> str:
    """Return the description of a field, and its bounds."""
    bounds = [text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema]
    described = schema.get("description")
    parts = [str(described)] if described else []
    return "; ".join(parts + bounds)


def _mapping(value: Any) -> Schema:
    """Return a JSON object; an empty one for anything else, since an agent may send anything."""
    return cast("Schema", value) if isinstance(value, dict) else {}
