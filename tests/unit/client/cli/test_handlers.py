"""Tables of the commands of an agent and of their schemas."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from arc_client.cli.handlers import MAX_ROWS, offers, rows_of
from arc_protocol.messages.agents import AgentInfo, HandlerInfo

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def agent(name: str, *handlers: HandlerInfo, deployment: str = "dep", age: int = 0) -> AgentInfo:
    return AgentInfo(
        agent_id=name,
        deployment_id=deployment,
        version="1",
        hostname=name,
        handlers=list(handlers),
        first_seen_at=NOW,
        last_seen_at=NOW - timedelta(seconds=age),
        holding=[],
    )


def test_agents_that_say_the_same_stand_together_the_last_seen_first() -> None:
    old, new = HandlerInfo(name="a"), HandlerInfo(name="a", description="better")
    found = offers(
        [
            agent("one", old, age=9),
            agent("two", new, HandlerInfo(name="b")),
            agent("three", old),
            agent("far", old, deployment="zone"),
        ],
        "a",
    )

    assert [(o.deployment_id, o.handler, [a.agent_id for a in o.agents]) for o in found] == [
        ("dep", old, ["three", "one"]),
        ("dep", new, ["two"]),
        ("zone", old, ["far"]),
    ]


def test_a_schema_is_a_row_a_field_with_references_followed() -> None:
    schema = {
        "$ref": "#/$defs/Order",
        "$defs": {
            "Order": {
                "type": "object",
                "required": ["items"],
                "properties": {
                    "items": {"type": "array", "items": {"$ref": "#/$defs/Item"}, "minItems": 1},
                    "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
                    "kind": {"enum": ["new", "used"], "default": "new"},
                },
            },
            "Item": {
                "type": "object",
                "required": ["price"],
                "properties": {"price": {"type": "integer", "minimum": 0, "description": "Cents"}},
            },
        },
    }

    rows = [(r.path, r.type, r.is_required, r.default, r.about) for r in rows_of(schema)]

    assert rows == [
        ("items", "list of object", True, "", "at least 1 items"),
        ("items[].price", "integer", True, "", "Cents; ≥ 0"),
        ("note", "string or null", False, "null", ""),
        ("kind", '"new" | "used"', False, '"new"', ""),
    ]


@pytest.mark.parametrize(
    ("schema", "rows"),
    [
        ({"type": "string"}, [("(all of it)", "string")]),
        ({}, [("(all of it)", "anything")]),
        ({"type": ["string", "null"]}, [("(all of it)", "string or null")]),
        (
            {"type": "object", "additionalProperties": {"type": "integer"}},
            [("(all of it)", "object of integer")],
        ),
        ({"$ref": "#/$defs/Gone"}, [("(all of it)", "anything")]),
        ({"properties": {"a": 3}}, [("a", "anything")]),
        ({"properties": [], "$defs": 3, "items": 7}, [("(all of it)", "anything")]),
    ],
)
def test_any_schema_can_be_shown(schema: Any, rows: list[tuple[str, str]]) -> None:
    assert [(row.path, row.type) for row in rows_of(schema)] == rows


def test_a_schema_that_refers_to_itself_comes_to_an_end() -> None:
    node = {"type": "object", "properties": {f"k{n}": {"$ref": "#/$defs/N"} for n in range(9)}}
    looped = {"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}

    assert len(rows_of({"$ref": "#/$defs/N", "$defs": {"N": node}})) == MAX_ROWS
    assert len(rows_of(looped)) == 1
