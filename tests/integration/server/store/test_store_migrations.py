"""A database of an earlier release, brought up to date."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from arc_protocol.lifecycle import ShownState
from arc_protocol.messages.base import State
from arc_server.ports.records import CommandFilter, StoredError
from arc_server.store.engine import schema
from arc_server.store.operations import bodies
from arc_server.store.sqlite_store import SqliteStore

BEFORE_SEARCH = 13
BEFORE_BOUNDS = 7
"""The schema before tokens had bounds, and leases credentials."""


def database_of(path: Path, version: int) -> sqlite3.Connection:
    """Make a database with the schema that a number had."""
    connection = sqlite3.connect(path, isolation_level=None)
    for migration in schema.migrations()[:version]:
        for statement in migration.statements:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {version}")
    return connection


async def test_tokens_credentials_and_agents_of_an_earlier_release_stay(tmp_path: Path) -> None:
    path = tmp_path / "arc.db"
    connection = database_of(path, BEFORE_BOUNDS)
    connection.executemany(
        "INSERT INTO tokens VALUES (?, ?, ?, 1, ?, ?)",
        [
            (b"one", "tok_1", "sender", "acme", None),
            (b"two", "tok_2", "admin", None, None),
            (b"three", "tok_3", "agent", None, 5),
        ],
    )
    connection.execute("INSERT INTO enrol_tokens VALUES (x'00', 'enr_1', 'acme', 1, 1, 1, 2, NULL)")
    connection.execute("INSERT INTO credentials VALUES ('cred_1', 'acme', 'db', 'enr_1', 1, NULL)")
    registration = '{"deploymentId":"acme","version":"1","hostname":"h","handlers":[]}'
    connection.execute(
        "INSERT INTO agents VALUES ('acme', 'agent-1', ?, 1, 1, NULL)", (registration.encode(),)
    )
    connection.close()

    store = await SqliteStore.open(path)
    known = {name: await store.find_token(name) for name in (b"one", b"two", b"three")}
    tokens = {name: each.token for name, each in known.items() if each is not None}
    credential = await store.find_credential("cred_1")
    [agent] = (await store.list_agents("acme", datetime(1970, 1, 1, tzinfo=UTC), 10)).agents
    revoked = await store.revoked_ids()
    await store.close()

    assert tokens[b"one"].deployments == ("acme",)
    assert (tokens[b"two"].deployments, tokens[b"two"].expires_at) == (None, None)
    assert tokens[b"three"].revoked_at is not None
    assert revoked == {"tok_3"}
    assert credential is not None
    assert (credential.target, credential.is_target_bound) == (None, False)
    assert (agent.agent_id, agent.credential) == ("agent-1", None)


async def test_the_codes_of_what_failed_before_are_found(tmp_path: Path) -> None:
    path = tmp_path / "arc.db"
    connection = database_of(path, BEFORE_SEARCH)
    codes = ["CANCELLED", "A", "X" * 31, "Y" * 32, "Z" * 200, "OWN-Ä"]
    for seq, code in enumerate(codes, 1):
        connection.execute(
            "INSERT INTO commands (seq, command_id, deployment_id, target_id, target_type, command,"
            " state, attempt, max_attempts, created_at, is_push, completed_at)"
            " VALUES (?, ?, 'acme', 'default', 'daemon', 'x', 'FAILED', 1, 5, ?, 0, 9)",
            (seq, f"cmd_{seq}", seq),
        )
        form, data, size, checksum = bodies.of_response(StoredError(code=code, message="m"))
        connection.execute(
            "INSERT INTO responses VALUES (?, ?, ?, ?, ?)", (seq, form, data, size, checksum)
        )
    connection.execute("INSERT INTO usage (deployment_id) VALUES ('acme')")
    connection.close()

    store = await SqliteStore.open(path)
    listed = await store.list(CommandFilter(state=State.FAILED), None, 9)
    cancelled = await store.list(CommandFilter(states=(ShownState.CANCELLED,)), None, 9)
    counts = await store.count("acme")
    await store.close()

    assert [each.error_code for each in listed.commands] == codes[::-1]
    assert [each.command_id for each in cancelled.commands] == ["cmd_1"]
    assert (counts[ShownState.FAILED], counts[ShownState.CANCELLED]) == (len(codes) - 1, 1)
