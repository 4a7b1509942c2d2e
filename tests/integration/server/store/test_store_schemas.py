"""Databases of every earlier schema: each opens with its data, and leaves a copy for the way back.

`schemas/` holds a dump of each. `ARC_WRITE_SCHEMAS=1` writes those that are missing, from the
migrations; a dump that is there is never written again.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from arc_protocol.messages.base import State
from arc_server.backup.contents import problems_of
from arc_server.store.engine import opening, schema
from arc_server.store.engine.refusals import StoreRefused, StoreTooNew
from arc_server.store.operations import bodies
from arc_server.store.sqlite_store import SqliteStore
from tests.support.store_samples import DEPLOYMENT, create, granted_ids, lease

DUMPS = Path(__file__).parent / "schemas"
EARLIER = range(1, schema.newest())
_PARAMS = bodies.checksum(bodies.INLINE, b"{}", 2)
_AGENT = f'{{"deploymentId":"{DEPLOYMENT}","version":"1","hostname":"h","handlers":[]}}'
SAMPLES = {
    1: f"""
    INSERT INTO deployments (deployment_id, created_at) VALUES ('{DEPLOYMENT}', 1);
    INSERT INTO commands (seq, command_id, deployment_id, target_id, target_type, command, state,
        attempt, max_attempts, created_at, is_push, ready_order)
    VALUES (1, 'cmd_ready', '{DEPLOYMENT}', 'default', 'daemon', 'report', 'PENDING', 1, 5, 1, 0,
        1);
    INSERT INTO commands (seq, command_id, deployment_id, target_id, target_type, command, state,
        attempt, max_attempts, created_at, is_push, ready_order, dispatched_at, completed_at,
        lease_id, lease_attempt)
    VALUES (2, 'cmd_done', '{DEPLOYMENT}', 'default', 'daemon', 'report', 'SUCCEEDED', 1, 5, 1, 0,
        2, 2, 3, 'lease_2', 1);
    INSERT INTO params (command, form, data, size, checksum)
    VALUES (1, 1, CAST('{{}}' AS BLOB), 2, {_PARAMS}), (2, 1, CAST('{{}}' AS BLOB), 2, {_PARAMS});
    INSERT INTO responses (command, form, data, size, checksum)
    VALUES (2, 1, CAST('{{}}' AS BLOB), 2, {_PARAMS});
    INSERT INTO idempotency_keys (deployment_id, command, key, scope, names_target, params_digest,
        command_seq, created_at)
    VALUES ('{DEPLOYMENT}', 'report', 'k', '', 0, CAST('one' AS BLOB), 1, 1);
    INSERT INTO tokens (token_hash, token_id, scope, created_at, revoked_at)
    VALUES (CAST('hash' AS BLOB), 'tok_1', 'admin', 1, 2);
    INSERT INTO agents (agent_id, deployment_id, registration, first_seen_at, last_seen_at)
    VALUES ('agent-1', '{DEPLOYMENT}', CAST('{_AGENT}' AS BLOB), 1, 2);
    UPDATE numbering SET high = 1000;
    """,
    4: f"""
    INSERT INTO enrol_tokens (token_hash, token_id, deployment_id, uses, used, created_at,
        expires_at)
    VALUES (CAST('enrol' AS BLOB), 'etok_1', '{DEPLOYMENT}', 2, 1, 1, 2);
    INSERT INTO credentials (credential_id, deployment_id, hostname, enrol_token_id, enrolled_at)
    VALUES ('cred_1', '{DEPLOYMENT}', 'host', 'etok_1', 1);
    """,
    14: """
    INSERT INTO event_streams VALUES (2, 'lease_2', 2, 2, 0, 0, CAST('{"done":1}' AS BLOB));
    INSERT INTO event_lines VALUES (2, 1, 1, 1, 'info', 'begun'), (2, 2, 1, 2, 'info', 'é');
    """,
}
"""Rows that are inserted once a schema has come to that number; later migrations carry them on."""


def dump_of(number: int) -> Path:
    """Return the dump of a schema, written if that was asked for."""
    dump = DUMPS / f"{number:04}.sql"
    if not dump.exists() and os.environ.get("ARC_WRITE_SCHEMAS"):
        DUMPS.mkdir(exist_ok=True)
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
            for migration in schema.migrations()[:number]:
                for statement in migration.statements:
                    connection.execute(statement)
                connection.executescript(SAMPLES.get(migration.number, ""))
            dump.write_text("\n".join(connection.iterdump()) + "\n")
    return dump


@pytest.fixture(params=EARLIER)
def earlier(request: pytest.FixtureRequest, path: Path) -> int:
    """The number of an earlier schema, of which there is a database at `path`."""
    number: int = request.param
    dump = dump_of(number)
    assert dump.exists(), f"{dump} is missing: ARC_WRITE_SCHEMAS=1 writes it"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(dump.read_text())
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {number}")
    return number


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "arc.db"


@pytest.mark.usefixtures("earlier")
async def test_a_database_of_an_earlier_schema_opens_with_its_data(path: Path) -> None:
    store = await SqliteStore.open(path)

    done = await store.get("cmd_done")
    assert done is not None
    assert (done.command.state, done.response is not None) == (State.SUCCEEDED, True)
    assert granted_ids(await lease(store, 9)) == ["cmd_ready"]
    [token] = await store.list_tokens()
    assert token.revoked_at is not None
    [agent] = (await store.list_agents(None, datetime.fromtimestamp(0, UTC), 10)).agents
    assert agent.agent_id == "agent-1"
    await create(store)
    await store.close()


@pytest.mark.usefixtures("earlier")
async def test_what_deployments_use_is_counted_by_the_rules_of_now(path: Path) -> None:
    store = await SqliteStore.open(path)
    await store.delete_command("cmd_done")
    await store.close()

    with closing(sqlite3.connect(path)) as connection:
        assert list(problems_of(connection, is_deep=True)) == []


async def test_a_copy_of_before_opens_by_the_older_release(path: Path, earlier: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        before = sorted(connection.iterdump())  # a copy may have its indexes in another order

    await (await SqliteStore.open(path)).close()

    copy = path.with_name(f"arc.db.schema-{earlier}")
    with closing(sqlite3.connect(copy)) as connection:
        assert sorted(connection.iterdump()) == before
        assert connection.execute("PRAGMA user_version").fetchall() == [(earlier,)]
        assert schema.version_of(connection) == earlier
    assert copy.stat().st_mode & 0o077 == 0


async def test_a_database_that_is_up_to_date_is_not_copied(path: Path) -> None:
    for _ in range(2):
        await (await SqliteStore.open(path)).close()

    assert not list(path.parent.glob("*schema-*"))


@pytest.mark.parametrize("earlier", [schema.newest() - 1], indirect=True)
async def test_without_room_for_the_copy_nothing_changes(
    path: Path, earlier: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(opening, "write_snapshot", full)

    with pytest.raises(StoreRefused, match="No space left on device"):
        await SqliteStore.open(path)

    with closing(sqlite3.connect(path)) as connection:
        assert schema.version_of(connection) == earlier


async def test_a_downgrade_is_refused_with_both_numbers(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await SqliteStore.open(path)).close()
    every = schema.migrations()
    monkeypatch.setattr(schema, "migrations", lambda: every[:-1])

    with pytest.raises(StoreTooNew) as refused:
        await SqliteStore.open(path)

    older = len(every) - 1
    assert f"its schema is {len(every)} and this release knows {older}" in str(refused.value)
    assert f"arc.db.schema-{older}" in str(refused.value)
