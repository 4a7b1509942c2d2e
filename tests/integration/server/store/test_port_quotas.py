"""Quotas of a deployment: what counts, what is refused, and what makes room."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from arc_protocol.errors import QuotaExceeded
from arc_server.backup.contents import problems_of
from arc_server.ports.agents import SILENT_AGENT_SECONDS
from arc_server.ports.records import StoredInline
from arc_server.ports.store import Store
from arc_server.store.sqlite_store import SqliteStore
from tests.support.store_quotas import quotas, usage
from tests.support.store_samples import (
    DEPLOYMENT,
    HANDLER_ERROR,
    NOW,
    PARAMS,
    RESULT,
    UPLOAD,
    after,
    create,
    lease,
    new,
    registration,
)

FULL = {
    "max_live_commands": ({}, 2),
    "max_open_uploads": ({"params": UPLOAD}, 2),
    "max_stored_bytes": ({}, 2 * len(PARAMS.data)),
    "max_idempotency_keys": ({"idempotency_key": "k"}, 2),
}


def keyed(fields: dict[str, Any], number: int) -> dict[str, Any]:
    """Fields of a create, with a key of its own if they have one."""
    return {
        name: f"k{number}" if name == "idempotency_key" else value for name, value in fields.items()
    }


@pytest.mark.parametrize("quota", FULL)
async def test_a_create_past_a_quota_is_refused_and_stores_nothing(
    store: Store, quota: str
) -> None:
    fields, most = FULL[quota]
    limits = quotas(**{quota: most})
    for number in range(2):
        await create(store, **keyed(fields, number), quotas=limits)
    before = await usage(store, DEPLOYMENT)

    with pytest.raises(QuotaExceeded):
        await create(store, **keyed(fields, 3), quotas=limits)

    assert await usage(store, DEPLOYMENT) == before
    await create(store, deployment_id="dep-2", **keyed(fields, 3), quotas=limits)


async def test_the_refusal_names_the_quota(sqlite: SqliteStore) -> None:
    await create(sqlite, quotas=quotas(max_live_commands=1))

    with pytest.raises(QuotaExceeded, match="max_live_commands: 1") as refused:
        await create(sqlite, quotas=quotas(max_live_commands=1))

    context = refused.value.context
    assert (context["quota"], context["most"], context["retry_after_seconds"] > 0) == (
        "max_live_commands",
        1,
        True,
    )


async def test_a_repeat_of_a_create_is_answered_where_the_quota_is_used_up(store: Store) -> None:
    again = new(idempotency_key="k", quotas=quotas(max_live_commands=1, max_idempotency_keys=1))
    first = await store.create(again)

    repeat = await store.create(again)

    assert repeat.is_replay
    assert repeat.command.command_id == first.command.command_id


@pytest.mark.parametrize("response", [RESULT, HANDLER_ERROR])
async def test_a_command_that_ends_makes_room_and_its_response_is_taken_in_any_case(
    store: Store, response: Any
) -> None:
    limits = quotas(max_live_commands=1, max_stored_bytes=len(PARAMS.data) + 1)
    first = await create(store, quotas=limits)
    (grant,) = (await lease(store)).grants

    await store.complete(first.command_id, grant.command.lease_id, response, NOW)

    assert (await usage(store, DEPLOYMENT))["live_commands"] == 0
    with pytest.raises(QuotaExceeded):
        await create(store, quotas=limits)
    await create(store, quotas=quotas(max_live_commands=1))


async def test_tags_count_as_stored(store: Store) -> None:
    await create(store, tags={"team": "grün"})

    assert (await usage(store, DEPLOYMENT))["stored_bytes"] == len(PARAMS.data) + 16


async def test_an_upload_counts_as_announced_until_it_comes_or_its_command_ends(
    store: Store,
) -> None:
    first = await create(store, params=UPLOAD)
    second = await create(store, params=UPLOAD, deadline=after(1))
    assert (await usage(store, DEPLOYMENT))["stored_bytes"] == 2 * (UPLOAD.size or 0)

    await store.mark_uploaded(first.command_id, StoredInline(data=b"{}"), NOW)
    await store.expire_due(after(2), 10)

    used = await usage(store, DEPLOYMENT)
    assert (used["open_uploads"], used["live_commands"], used["stored_bytes"]) == (0, 1, 2)
    assert second.command_id


async def test_a_batch_that_is_undone_counts_nothing(sqlite: SqliteStore) -> None:
    taken = new()
    await sqlite.create(taken)

    outcomes = await asyncio.gather(
        *(sqlite.create(each) for each in (new(), taken, new())), return_exceptions=True
    )

    assert [isinstance(outcome, Exception) for outcome in outcomes] == [False, True, False]
    used = await usage(sqlite, DEPLOYMENT)
    assert (used["live_commands"], used["stored_bytes"]) == (3, 3 * len(PARAMS.data))


async def test_agents_have_a_quota_and_a_silent_one_gives_its_place(store: Store) -> None:
    limits = quotas(max_agents=2)
    for number in range(2):
        await store.put_agent(f"a{number}", registration(), after(number), None, limits)

    with pytest.raises(QuotaExceeded):
        await store.put_agent("a2", registration(), after(2), None, limits)
    await store.put_agent("a1", registration(), after(2), None, limits)
    late = after(SILENT_AGENT_SECONDS + 1)
    await store.put_agent("a2", registration(), late, None, limits)

    found = (await store.list_agents(DEPLOYMENT, NOW, 10)).agents
    assert [agent.agent_id for agent in found] == ["a1", "a2"]
    assert (await usage(store, DEPLOYMENT))["agents"] == 2


async def test_registrations_count_as_stored(store: Store) -> None:
    limits = quotas(max_stored_bytes=100)
    await store.put_agent("a", registration(), NOW, None, limits)

    with pytest.raises(QuotaExceeded):
        await store.put_agent("b", registration(), NOW, None, limits)
    with pytest.raises(QuotaExceeded):
        await create(store, quotas=limits)


async def test_whatever_is_deleted_is_subtracted_and_fsck_finds_a_wrong_count(
    sqlite: SqliteStore,
) -> None:
    path = sqlite.database.path
    tags = {"team": "grün"}
    for fields in (
        {},
        {"params": UPLOAD, "tags": tags},
        {"idempotency_key": "k", "tags": tags},
        {},
    ):
        await create(sqlite, **fields)
    (grant,) = (await lease(sqlite)).grants
    await sqlite.complete(grant.command.command_id, grant.command.lease_id, RESULT, NOW)
    await sqlite.put_agent("a", registration(), NOW)
    await sqlite.close()
    assert _problems(path) == []

    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("DELETE FROM commands WHERE seq % 2 = 0")
        connection.execute("DELETE FROM agents")
        connection.execute("DELETE FROM idempotency_keys")
    assert _problems(path) == []
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE usage SET live_commands = live_commands + 1")
    [problem] = _problems(path)
    assert DEPLOYMENT in problem


async def test_a_recount_counts_its_own_batch_once(sqlite: SqliteStore) -> None:
    path = sqlite.database.path
    await create(sqlite, idempotency_key="k")
    await sqlite.put_agent("a", registration(), NOW)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE usage SET live_commands = 9, idempotency_keys = 9, agents = 0")

    await asyncio.gather(
        sqlite.create(new(params=UPLOAD)),
        sqlite.recount_usage(DEPLOYMENT),
        sqlite.create(new()),
        sqlite.recount_usage("dep-unknown"),
    )

    used = await usage(sqlite, DEPLOYMENT)
    assert (used["live_commands"], used["open_uploads"], used["agents"]) == (3, 1, 1)
    assert _problems(path) == []


def _problems(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(problems_of(connection, is_deep=True))
