"""The SQL: named queries, migrations, and the states in them."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from arc_protocol import lifecycle
from arc_protocol.lifecycle import ShownState
from arc_protocol.messages.base import State
from arc_server.store.engine import queries, schema

STATES = re.compile(r"'([A-Z_]+)'")


def transitions_in_sql() -> dict[State, set[State]]:
    """By new state: the states that the guarded updates may come from."""
    found: dict[State, set[State]] = defaultdict(set)
    for query in queries.load().values():
        change = re.search(r"\bSET state = '([A-Z_]+)'.*\bWHERE (.*)", query)
        if change is None:
            continue
        guard = re.search(r"\bstate IN \(([^)]*)\)", change[2])
        assert guard is not None, f"not guarded by states: {query}"
        found[State(change[1])] |= {State(name) for name in STATES.findall(guard[1])}
    return found


def test_the_transitions_in_sql_are_those_of_the_table() -> None:
    expected = {
        following: set(lifecycle.sources(following))
        for following in State
        if lifecycle.sources(following)
    }

    assert transitions_in_sql() == expected


def test_every_change_of_state_is_for_one_command_that_was_read() -> None:
    for name, query in queries.load().items():
        if "SET state = " in query:
            assert "WHERE seq = :seq AND state IN" in query, name
            assert "SET state = :" not in query, name


def test_every_write_for_a_holder_and_every_sweep_carries_the_lease() -> None:
    for name in (
        *("succeed", "fail", "expire", "request_cancel"),
        *("renew", "hand_back", "dispatch_again"),
    ):
        _, _, guard = queries.load()[name].partition(" WHERE ")
        assert "state" in guard, name
        assert "lease_id = :lease_id" in guard or "lease_id IS :lease_id" in guard, name


def test_only_known_states_are_spelled_in_sql() -> None:
    statements = [text for each in schema.migrations() for text in each.statements]
    spelled = {
        name for text in (*queries.load().values(), *statements) for name in STATES.findall(text)
    }

    assert spelled == set(ShownState)


def test_a_file_of_queries_is_taken_apart_by_name() -> None:
    text = (
        "-- What this file is for.\n"
        "-- name: columns\na, b\n"
        "-- name: one\n-- A remark.\nSELECT {columns}\nFROM t -- name: not this\n;\n"
    )

    found = queries.parse(text)

    assert found == {"columns": "a, b", "one": "SELECT {columns} FROM t -- name: not this ;"}


def test_a_name_that_is_there_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="twice"):
        queries.parse("-- name: a\nSELECT 1;\n-- name: a\nSELECT 2;\n")


def test_fragments_are_filled_in_and_are_no_queries() -> None:
    loaded = queries.load()

    assert "command_columns" not in loaded
    assert loaded["find_command"].startswith("SELECT c.seq, c.command_id")
    assert not [name for name, query in loaded.items() if "{" in query or query.endswith(";")]


def test_a_script_is_split_at_its_statements() -> None:
    script = (
        "-- a remark; with a semicolon\n\nCREATE TABLE a (\n  b TEXT -- c;\n);\n"
        "INSERT INTO a VALUES ('x;y');\n"
        "CREATE TRIGGER t AFTER DELETE ON a BEGIN\n  SELECT 1;\n  SELECT 2;\nEND;\n"
    )

    statements = list(schema.split(script))

    assert len(statements) == 3
    assert statements[1] == "INSERT INTO a VALUES ('x;y');"
    assert statements[2].endswith("END;")


def test_a_script_without_an_end_is_an_error() -> None:
    with pytest.raises(ValueError, match="without an end"):
        list(schema.split("SELECT 1;\nSELECT 2"))


def test_migrations_are_numbered_and_dated() -> None:
    for number, migration in enumerate(schema.migrations(), 1):
        assert re.match(rf"{number:04}_20\d\d-\d\d-\d\d_", migration.name)


def test_parameters_are_given_by_place() -> None:
    query = "UPDATE t SET a = :now, b = :name WHERE c <= :now AND d = 'x'"

    sql, names = queries.by_place(query)

    assert sql == "UPDATE t SET a = ?, b = ? WHERE c <= ? AND d = 'x'"
    assert names == ["now", "name", "now"]
