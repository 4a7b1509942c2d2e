"""Lists of commands by any filter: complete, in order, page by page."""

from __future__ import annotations

import itertools
import random
import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

from arc_protocol.lifecycle import ShownState
from arc_protocol.messages.base import State
from arc_server.backup.contents import usage_problems
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.ports.records import CommandFilter, CommandRecord, ListMark, Quotas
from arc_server.ports.store import Store
from arc_server.store.operations import search
from arc_server.store.sqlite_store import SqliteStore
from tests.model.memory import MemoryStore
from tests.support.store_samples import (
    DEPLOYMENT,
    HANDLER_ERROR,
    NOW,
    PARAMS,
    RESULT,
    UPLOAD,
    after,
    create,
    daemon,
    deployment,
    ids,
    lease,
    new,
    query,
)

TAGS = (
    None,
    {"env": "prod"},
    {"env": "prod", "team": 'a"b*[?]\\ ü'},
    {"env": "test", "team": "web", "x.y_z-1": "1"},
)


async def every_page(store: Store, which: CommandFilter, limit: int) -> list[CommandRecord]:
    """Return all commands of a filter, read page by page."""
    found: list[CommandRecord] = []
    before: ListMark | None = None
    for _ in range(1_000):
        page = await store.list(which, before, limit)
        assert len(page.commands) <= limit
        found += page.commands
        if page.next_before is None:
            return found
        before = page.next_before
    raise AssertionError("the list does not end")


async def _live_a_little(store: Store, seed: int) -> None:
    """Store commands that differ in all that a filter names, the same for the same seed."""
    dice = random.Random(seed)
    for name in ("dep-1", "dep-2"):
        targets = [daemon("vault"), daemon("edge")]
        await store.put_deployment(
            deployment(*targets, deployment_id=name, default_target_id="vault"), NOW
        )
    for number in range(60):
        at = after(number // 3)
        created = await store.create(
            new(
                command_id=f"cmd_{seed}_{number}",
                deployment_id=dice.choice(("dep-1", "dep-2")),
                command=dice.choice(("a", "b")),
                target_resource_id=dice.choice((None, "vault", "edge")),
                created_by=dice.choice((None, "tok_1", "tok_2")),
                idempotency_key=dice.choice((None, "key-1", f"key-{seed}-{number}")),
                created_at=at,
                tags=dice.choice(TAGS),
                deadline=at + timedelta(seconds=dice.choice((5, 900))),
            )
        )
        fate = dice.choice(("wait", "run", "succeed", "fail", "cancel", "expire"))
        command_id, target = created.command.command_id, created.command.target
        if fate == "cancel":
            await store.cancel(command_id, at + timedelta(seconds=dice.randrange(4)))
        elif fate == "expire":
            await store.expire_due(at + timedelta(seconds=dice.randrange(9)), 3)
        elif fate != "wait":
            lease_ids = [f"lease_{seed}_{number}"]
            asked = query(
                deployment_id=created.command.deployment_id, target=target, lease_ids=lease_ids
            )
            granted = await store.lease(asked, at)
            if granted.grants and fate != "run":
                response = RESULT if fate == "succeed" else HANDLER_ERROR
                held = granted.grants[0].command
                ends = at + timedelta(seconds=dice.randrange(4))
                await store.complete(held.command_id, held.lease_id, response, ends)


def _filters(seed: int) -> list[CommandFilter]:
    """Return filters of every field alone and of many fields together."""
    choices: dict[str, list[Any]] = {
        "deployment_id": ["dep-1", "dep-3"],
        "state": list(State),
        "states": [
            *((each,) for each in ShownState),
            (ShownState.CANCELLED, ShownState.EXPIRED),
            (ShownState.FAILED, ShownState.PENDING, ShownState.SUCCEEDED),
        ],
        "command": ["a", "c"],
        "target_id": ["vault", "edge", "default", "nowhere"],
        "created_by": ["tok_1", "tok_3"],
        "idempotency_key": ["key-1", "key-none"],
        "tags": [*TAGS[1:], {"team": "web"}, {"env": "*"}, {"env": "prod", "team": "web"}],
        "created_after": [after(7)],
        "created_before": [after(14)],
        "ended_after": [after(5)],
        "ended_before": [after(16)],
    }
    alone = [
        CommandFilter(**{field: value}) for field, values in choices.items() for value in values
    ]
    dice = random.Random(seed)
    together = [
        CommandFilter(
            **{
                field: dice.choice(values)
                for field, values in choices.items()
                if dice.random() < 0.35
            }
        )
        for _ in range(300)
    ]
    return [CommandFilter(), *alone, *together]


@pytest.mark.parametrize("walked", [2, search.WALKED])
@pytest.mark.parametrize("seed", [1, 2])
async def test_every_filter_finds_what_the_model_finds_in_its_order(
    store: Store, seed: int, walked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "WALKED", walked)
    model = MemoryStore()
    for each in (store, model):
        await _live_a_little(each, seed)

    number_found = 0
    for which in _filters(seed):
        expected = await every_page(model, which, 1_000)
        for limit in (3, 100):
            assert ids(await every_page(store, which, limit)) == ids(expected), which
        number_found += len(expected)
    assert number_found > 1_000
    for reach in (EVERYTHING, Reach(deployments=("*-2",)), Reach(deployments=())):
        for named in (None, "dep-1", "dep-3"):
            assert await store.count(named, reach) == await model.count(named, reach)
    listed = await every_page(store, CommandFilter(), 100)
    assert sum((await store.count(None)).values()) == len(listed)


@pytest.mark.parametrize("limit", [1, 3, 12, 13])
async def test_lists_are_newest_first_and_complete_page_by_page(store: Store, limit: int) -> None:
    made = [
        await create(store, deployment_id=deployment_id, command=name)
        for deployment_id, name in itertools.product(("dep-1", "dep-2"), ("a", "b"))
        for _ in range(3)
    ]

    assert await every_page(store, CommandFilter(), limit) == made[::-1]
    named = CommandFilter(deployment_id="dep-2", command="a")
    assert await every_page(store, named, limit) == made[8:5:-1]


async def test_commands_are_listed_by_when_they_were_created(store: Store) -> None:
    late, early = await create(store, created_at=after(9)), await create(store, created_at=NOW)

    page = await store.list(CommandFilter(), None, 10)

    assert ids(page.commands) == [late.command_id, early.command_id]


async def test_a_list_has_the_codes_of_what_failed(store: Store) -> None:
    waiting, cancelled = await create(store), await create(store)
    await store.cancel(cancelled.command_id, NOW)

    page = await store.list(CommandFilter(), None, 10)

    codes = {each.command_id: each.error_code for each in page.commands}
    assert codes == {cancelled.command_id: "CANCELLED", waiting.command_id: None}


async def test_a_list_goes_on_where_it_was_while_commands_come_in(store: Store) -> None:
    old = [(await create(store)).command_id for _ in range(4)]
    first = await store.list(CommandFilter(), None, 2)

    await create(store)
    second = await store.list(CommandFilter(), first.next_before, 2)

    assert ids(first.commands) + ids(second.commands) == old[::-1]
    assert second.next_before is None


async def test_a_rare_match_takes_pages_that_look_at_few_commands(
    sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = sqlite
    monkeypatch.setattr(search, "WALKED", 10)
    rare = await create(store, deployment_id="dep-2", created_by="tok_rare")
    for _ in range(25):
        await create(store, deployment_id="dep-2", created_by="tok_1")
    which = CommandFilter(deployment_id="dep-2", created_by="tok_rare")

    first = await store.list(which, None, 5)
    second = await store.list(which, first.next_before, 5)
    third = await store.list(which, second.next_before, 5)

    assert [first.commands, second.commands, ids(third.commands)] == [[], [], [rare.command_id]]
    assert first.next_before is not None
    assert third.next_before is None


async def test_what_is_leased_meanwhile_changes_its_list(store: Store) -> None:
    waiting = [(await create(store, quotas=Quotas())).command_id for _ in range(3)]
    await lease(store, 1)

    pending = await store.list(CommandFilter(states=(ShownState.PENDING,)), None, 9)

    assert ids(pending.commands) == waiting[:0:-1]


async def test_the_tags_of_what_is_purged_are_gone(sqlite: SqliteStore) -> None:
    tagged = await create(sqlite, tags={"env": "prod", "team": "web"})
    other = await create(sqlite, tags={"env": "prod"})
    await sqlite.cancel(tagged.command_id, NOW)

    await sqlite.delete_command(tagged.command_id)

    page = await sqlite.list(CommandFilter(tags={"env": "prod"}), None, 9)
    assert ids(page.commands) == [other.command_id]
    with closing(sqlite3.connect(sqlite.database.path)) as connection:
        assert connection.execute("SELECT key, value FROM command_tags").fetchall() == [
            ("env", "prod")
        ]


async def test_states_are_counted_as_they_change(store: Store) -> None:
    async def counts() -> dict[str, int]:
        counted = await store.count(DEPLOYMENT)
        return {state: number for state, number in counted.items() if number}

    one, two = await create(store), await create(store, params=UPLOAD)
    assert await counts() == {"PENDING": 1, "PENDING_UPLOAD": 1}
    await store.mark_uploaded(two.command_id, PARAMS, NOW)
    held = (await lease(store, 1)).grants[0].command
    assert await counts() == {"PENDING": 1, "DISPATCHED": 1}
    await store.release(held.lease_id or "", NOW, costs_attempt=True)
    assert await counts() == {"PENDING": 2}
    await store.complete(held.command_id, held.lease_id, RESULT, NOW)
    await store.cancel(two.command_id, NOW)
    assert await counts() == {"SUCCEEDED": 1, "CANCELLED": 1}
    await store.delete_command(one.command_id)
    assert await counts() == {"CANCELLED": 1}


async def test_a_recount_and_fsck_agree_with_the_counts(sqlite: SqliteStore) -> None:
    await _live_a_little(sqlite, 3)
    before = await sqlite.count(None)
    with closing(sqlite3.connect(sqlite.database.path)) as connection:
        assert list(usage_problems(connection)) == []
        connection.execute("UPDATE usage SET failed = failed + 1, dispatched = 0")
        connection.commit()
        assert len(list(usage_problems(connection))) == 2

    for name in ("dep-1", "dep-2"):
        await sqlite.recount_usage(name)

    assert await sqlite.count(None) == before
