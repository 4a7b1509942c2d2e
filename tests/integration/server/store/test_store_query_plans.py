"""No query walks a table, and none sorts: cost does not grow with what is stored."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import arc_server.store
from arc_server.store.engine import queries, schema

WHOLE_TABLES = {
    *("list_tokens", "list_enrol_tokens", "list_credentials", "epochs"),
    *("credential_of_deployment", "enrol_token_of_deployment", "usage_of_all"),
    "count_live",
}
"""Asked by an administrator, by a scrape or once, of tables that are short."""


@pytest.fixture(scope="module")
def connection() -> Iterator[sqlite3.Connection]:
    """An empty database of the newest schema."""
    opened = sqlite3.connect(":memory:", isolation_level=None)
    schema.migrate(opened)
    yield opened
    opened.close()


class _Anything(dict[str, Any]):
    def __missing__(self, key: str) -> None:
        return None


def plan_of(connection: sqlite3.Connection, query: str) -> list[str]:
    rows = connection.execute(f"EXPLAIN QUERY PLAN {query}", _Anything()).fetchall()
    return [row[3] for row in rows]


@pytest.mark.parametrize("name", sorted(queries.load()))
def test_the_query_is_served_by_an_index_and_needs_no_sorting(
    connection: sqlite3.Connection, name: str
) -> None:
    plan = plan_of(connection, queries.load()[name])

    scans = [step for step in plan if step.startswith("SCAN") and step != "SCAN CONSTANT ROW"]
    assert bool(scans) == (name in WHOLE_TABLES), plan
    assert not [step for step in plan if "TEMP B-TREE" in step], plan


def test_a_scan_and_a_sort_would_be_found(connection: sqlite3.Connection) -> None:
    assert "SCAN commands" in plan_of(connection, "SELECT * FROM commands WHERE attempt = 2")
    plan = plan_of(connection, "SELECT * FROM commands WHERE deployment_id = 'd' ORDER BY attempt")
    assert any("TEMP B-TREE" in step for step in plan)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("ready_commands", "commands_ready"),
        ("due_pushes", "commands_push_due"),
        ("find_lease", "commands_lease"),
        ("lapsed", "commands_lapse"),
        ("grant_grace", "commands_lapse"),
        ("overdue", "commands_deadline"),
        ("held_by", "commands_holder"),
        ("find_of_deployment", "commands_of_deployment"),
        ("find_in_state", "commands_in_state"),
        ("find_ended_badly", "commands_of_deployment_ended_badly"),
        ("find_ended", "commands_ended"),
        ("find_by_key", "idempotency_keys_by_key"),
        ("move_ready", "commands_ready"),
        ("forget_keys", "idempotency_keys_orphaned"),
        ("ended_before", "commands_ended"),
        ("ended_between", "commands_ended"),
        ("awaited_since", "commands_awaited"),
    ],
)
def test_hot_queries_use_the_index_that_holds_only_what_they_may_find(
    connection: sqlite3.Connection, name: str, index: str
) -> None:
    assert f"INDEX {index} " in " ".join(plan_of(connection, queries.load()[name]))


def test_every_query_is_used() -> None:
    [folder] = arc_server.store.__path__
    source = "".join(file.read_text() for file in sorted(Path(folder).rglob("*.py")))
    unused = [name for name in queries.load() if f'"{name}"' not in source]
    assert not unused
