"""A body that is damaged in the database concerns its own command alone."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from arc_protocol.messages.base import State
from arc_server.ports.records import DamagedBody, StoredError, StoredInline, StoredSuccess
from arc_server.store.sqlite_store import SqliteStore
from tests.support.store_samples import (
    NOW,
    PARAMS,
    RESULT,
    after,
    create,
    granted_ids,
    ids,
    lease,
    leased,
    new,
    read,
    registration,
    response_of,
)

DAMAGE = {
    "another byte": "UPDATE {table} SET data = CAST(x'7b2272' || substr(data, 5) AS BLOB)",
    "cut short": "UPDATE {table} SET data = substr(data, 1, 3)",
    "another form": "UPDATE {table} SET form = 2",
    "an unknown form": "UPDATE {table} SET form = 77",
    "another size": "UPDATE {table} SET size = 9",
    "another checksum": "UPDATE {table} SET checksum = checksum + 1",
}


def damage(path: Path, statement: str, command_id: str, table: str) -> None:
    """Change a body behind the store's back."""
    connection = sqlite3.connect(path)
    where = " WHERE command = (SELECT seq FROM commands WHERE command_id = ?)"
    changed = connection.execute(statement.format(table=table) + where, (command_id,))
    assert changed.rowcount == 1
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "statement", [*DAMAGE.values(), "DELETE FROM {table}"], ids=[*DAMAGE, "gone"]
)
async def test_damaged_params_fail_their_command_and_the_rest_is_handed_out(
    sqlite: SqliteStore, tmp_path: Path, statement: str
) -> None:
    for name in ("one", "bad", "two"):
        await create(sqlite, command_id=f"cmd_{name}")
    damage(tmp_path / "arc.db", statement, "cmd_bad", "params")

    found = await sqlite.get_with_bodies("cmd_bad")
    granted = await lease(sqlite, 3, at=after(1))

    assert found is not None
    assert isinstance(found.params, DamagedBody)
    assert granted_ids(granted) == ["cmd_one", "cmd_two"]
    assert ids(granted.ended) == ["cmd_bad"]
    failed = await read(sqlite, "cmd_bad")
    assert failed == granted.ended[0]
    assert (failed.state, failed.completed_at) == (State.FAILED, after(1))
    response = await response_of(sqlite, "cmd_bad")
    assert isinstance(response, StoredError)
    assert response.code == "SERIALIZATION_FAILED"


@pytest.mark.parametrize("statement", DAMAGE.values(), ids=DAMAGE)
async def test_a_damaged_response_reads_as_damaged(
    sqlite: SqliteStore, tmp_path: Path, statement: str
) -> None:
    held = await leased(sqlite, command_id="cmd_bad")
    await sqlite.complete("cmd_bad", held.lease_id, RESULT, after(1))
    damage(tmp_path / "arc.db", statement, "cmd_bad", "responses")

    found = await sqlite.get("cmd_bad")

    assert found is not None
    assert found.command.state is State.SUCCEEDED
    assert isinstance(found.response, DamagedBody)


async def test_a_repeat_of_a_create_with_damaged_params_is_answered(
    sqlite: SqliteStore, tmp_path: Path
) -> None:
    await create(sqlite, command_id="cmd_bad", idempotency_key="k")
    damage(tmp_path / "arc.db", DAMAGE["cut short"], "cmd_bad", "params")

    repeat = await sqlite.create(new(idempotency_key="k"))

    assert repeat.is_replay
    assert isinstance(repeat.params, DamagedBody)


async def test_an_operator_can_replace_a_damaged_body(sqlite: SqliteStore, tmp_path: Path) -> None:
    await create(sqlite, command_id="cmd_bad")
    damage(tmp_path / "arc.db", DAMAGE["cut short"], "cmd_bad", "params")

    await sqlite.write_payload("cmd_bad", PARAMS, None)

    assert granted_ids(await lease(sqlite)) == ["cmd_bad"]


def damage_pages(path: Path, mark: bytes) -> None:
    """Overwrite the chain of pages that holds a body with a pattern that leads nowhere."""
    content = bytearray(path.read_bytes())
    pages = [at for at in range(0, len(content), 4096) if content[at + 4 :].startswith(mark)]
    assert pages
    for at in pages:
        content[at : at + 4] = (2**31).to_bytes(4, "big")
    with path.open("r+b") as file:  # in place: the store has this file open
        file.write(content)


async def test_params_whose_pages_are_damaged_fail_their_command_alone(tmp_path: Path) -> None:
    path = tmp_path / "arc.db"
    store = await SqliteStore.open(path)
    await create(store, command_id="cmd_one")
    await create(store, command_id="cmd_bad", params=StoredInline(data=b"\xee" * 100_000))
    await create(store, command_id="cmd_two")
    await store.close()
    store = await SqliteStore.open(path)
    damage_pages(path, b"\xee" * 1000)

    found = await store.get_with_bodies("cmd_bad")
    granted = await lease(store, 3, at=after(1))

    assert found is not None
    assert isinstance(found.params, DamagedBody)
    assert granted_ids(granted) == ["cmd_one", "cmd_two"]
    assert ids(granted.ended) == ["cmd_bad"]
    assert (await read(store, "cmd_bad")).state is State.FAILED
    await create(store)
    await store.close()


async def test_a_response_whose_pages_are_damaged_reads_as_damaged(tmp_path: Path) -> None:
    path = tmp_path / "arc.db"
    store = await SqliteStore.open(path)
    held = await leased(store, command_id="cmd_bad")
    result = StoredSuccess(body=StoredInline(data=b"\xee" * 100_000))
    await store.complete("cmd_bad", held.lease_id, result, NOW)
    await store.close()
    store = await SqliteStore.open(path)
    damage_pages(path, b"\xee" * 1000)

    found = await store.get("cmd_bad")

    assert found is not None
    assert found.command.state is State.SUCCEEDED
    assert isinstance(found.response, DamagedBody)
    await store.close()


async def test_an_agent_of_a_name_that_is_refused_today_spoils_no_list(tmp_path: Path) -> None:
    path = tmp_path / "arc.db"
    store = await SqliteStore.open(path)
    for number in range(1, 4):
        name = "db-8" if number == 2 else "db-7"
        await store.put_agent(f"agent-{number}", registration(hostname=name), NOW)
    await store.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "UPDATE agents SET registration = CAST(replace(CAST(registration AS TEXT), 'db-8', ?)"
            " AS BLOB)",
            ("db\u202e-8",),
        )
    store = await SqliteStore.open(path)

    found = await store.list_agents(None, NOW, 10)
    first = await store.list_agents(None, NOW, 2)
    second = await store.list_agents(None, NOW, 2, behind=first.next)
    await store.put_agent("agent-2", registration(hostname="db-8"), NOW)
    again = await store.list_agents(None, NOW, 10)
    await store.close()

    assert [each.agent_id for each in found.agents] == ["agent-1", "agent-3"]
    assert [each.agent_id for each in (*first.agents, *second.agents)] == ["agent-1", "agent-3"]
    assert len(again.agents) == 3
