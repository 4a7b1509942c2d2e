"""Retention: what time and operators remove, and what stays."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from arc_protocol.errors import Conflict
from arc_protocol.messages.base import State
from arc_protocol.messages.events import EventsRequest, LogLine
from arc_server.ports.records import (
    CommandRecord,
    DamagedBody,
    EnrolToken,
    StoredBlob,
    StoredSuccess,
)
from arc_server.ports.store import Store
from arc_server.store.engine import queries, schema
from arc_server.store.engine.ended_journal import JOURNAL, read_journal
from arc_server.store.engine.session import StoreSession
from arc_server.store.operations import retention
from arc_server.store.sqlite_store import SqliteStore
from tests.support.store_samples import (
    DEPLOYMENT,
    HANDLER_ERROR,
    NOW,
    RESULT,
    UPLOAD,
    after,
    create,
    ids,
    leased,
    new,
    read,
    registration,
    response_of,
    secret,
    token,
)

BLOB = StoredBlob(path="arc/commands/x/params", size=9)
BLOB_RESULT = StoredSuccess(body=StoredBlob(path="arc/commands/x/response", size=9))
START = (0, 0)
LATER = after(1_000_000)


async def ended(store: Store, at: float, response: Any = RESULT, **changes: Any) -> CommandRecord:
    """Return a command that ended `at` seconds after NOW."""
    held = await leased(store, **changes)
    completion = await store.complete(held.command_id, held.lease_id, response, after(at))
    return completion.command


def lines(held: CommandRecord, count: int) -> EventsRequest:
    """Return a request with log lines of a holder."""
    assert held.lease_id is not None
    return EventsRequest(
        lease_id=held.lease_id,
        lines=[
            LogLine(number=number, at=NOW, level="info", message=f"line {number}")
            for number in range(1, count + 1)
        ],
    )


# commands


async def test_commands_are_purged_by_state_and_age_the_longest_ended_first(store: Store) -> None:
    late = await ended(store, 30)
    early = await ended(store, 10)
    failed = await ended(store, 5, HANDLER_ERROR)
    live = await create(store)

    first = await store.purge_commands(State.SUCCEEDED, after(31), LATER, 1)
    second = await store.purge_commands(State.SUCCEEDED, after(30), LATER, 1)

    assert (first.command_ids, first.is_done) == ([early.command_id], False)
    assert (second.command_ids, second.is_done) == ([], True)
    for kept in (late, failed, live):
        assert await read(store, kept.command_id) == kept
    assert await store.get(early.command_id) is None
    assert await store.events(early.command_id, 0, 10) is None


async def test_a_purge_takes_bodies_and_events_with_it(store: Store) -> None:
    held = await leased(store)
    await store.add_events(held.command_id, lines(held, 3), NOW, 100)
    await store.complete(held.command_id, held.lease_id, RESULT, NOW)

    purged = await store.purge_commands(State.SUCCEEDED, after(1), LATER, 10)

    assert purged.command_ids == [held.command_id]
    assert await store.get_with_bodies(held.command_id) is None


@pytest.mark.parametrize("state", [State.PENDING, State.DISPATCHED])
async def test_a_live_command_is_never_purged(store: Store, state: State) -> None:
    command = await (create if state is State.PENDING else leased)(store)

    purged = await store.purge_commands(state, LATER, LATER, 10)

    assert not purged.command_ids
    assert await read(store, command.command_id) == command


async def test_a_young_key_outlives_its_command_and_nothing_runs_twice(store: Store) -> None:
    done = await ended(store, 1, idempotency_key="k")
    purged = await store.purge_commands(State.SUCCEEDED, after(2), NOW, 10)
    assert purged.command_ids == [done.command_id]

    with pytest.raises(Conflict, match="no longer kept"):
        await store.create(new(idempotency_key="k"))

    assert await store.forget_idempotency_keys(after(1), 10) == 1
    assert not (await store.create(new(idempotency_key="k"))).is_replay


async def test_an_old_key_goes_with_its_command(store: Store) -> None:
    await ended(store, 1, idempotency_key="k")

    await store.purge_commands(State.SUCCEEDED, after(2), after(1), 10)

    assert not (await store.create(new(idempotency_key="k"))).is_replay


async def test_an_ended_command_is_deleted_by_its_id_and_a_live_one_is_not(store: Store) -> None:
    done, live = await ended(store, 1), await create(store)

    assert await store.delete_command(done.command_id)
    assert not await store.delete_command(done.command_id)
    with pytest.raises(Conflict, match="cancel it first"):
        await store.delete_command(live.command_id)

    assert await store.get(done.command_id) is None
    assert await read(store, live.command_id) == live


# bodies and events


async def test_bodies_are_stripped_and_the_command_stays(store: Store) -> None:
    done = await ended(store, 1, BLOB_RESULT, params=BLOB)
    failed = await ended(store, 2, HANDLER_ERROR)

    stripped = await store.strip_bodies(State.SUCCEEDED, START, after(9), 10)
    await store.strip_bodies(State.FAILED, START, after(9), 10)

    assert sorted(stripped.paths) == sorted([BLOB.path, BLOB_RESULT.body.path])  # type: ignore[union-attr]
    assert await read(store, done.command_id) == done
    found = await store.get_with_bodies(done.command_id)
    assert found is not None
    assert isinstance(found.params, DamagedBody)
    assert isinstance(found.response, DamagedBody)
    assert await response_of(store, failed.command_id) == HANDLER_ERROR


async def test_a_walk_goes_on_from_its_mark_also_among_commands_of_one_instant(
    store: Store,
) -> None:
    for number in range(5):
        await ended(store, 1, params=StoredBlob(path=f"p{number}", size=1))
    paths: list[str] = []
    mark, is_done, batches = START, False, 0

    while not is_done:
        stripped = await store.strip_bodies(State.SUCCEEDED, mark, after(2), 2)
        paths += stripped.paths
        mark, is_done, batches = stripped.mark, stripped.is_done, batches + 1

    assert paths == [f"p{number}" for number in range(5)]
    assert batches == 3


async def test_a_repeat_of_a_create_is_answered_after_its_bodies_are_gone(store: Store) -> None:
    done = await ended(store, 1, idempotency_key="k")
    await store.strip_bodies(State.SUCCEEDED, START, after(2), 10)

    repeat = await store.create(new(idempotency_key="k"))

    assert repeat.is_replay
    assert repeat.command == done


async def test_events_are_stripped_and_the_command_stays(store: Store) -> None:
    held = await leased(store)
    await store.add_events(held.command_id, lines(held, 3), NOW, 100)
    await store.complete(held.command_id, held.lease_id, RESULT, after(1))

    await store.strip_events(State.SUCCEEDED, START, after(2), 10)

    page = await store.events(held.command_id, 0, 10)
    assert page is not None
    assert not page.lines
    assert await response_of(store, held.command_id) == RESULT


async def test_uploads_that_never_came_end_as_failed_the_oldest_first(store: Store) -> None:
    old = await create(store, params=UPLOAD)
    older = await create(store, params=UPLOAD, created_at=after(-10))
    young = await create(store, params=UPLOAD, created_at=after(10))
    ready = await create(store)

    first = await store.fail_abandoned_uploads(after(5), after(20), 1)
    second = await store.fail_abandoned_uploads(after(5), after(20), 10)

    assert ids([*first, *second]) == [older.command_id, old.command_id]
    assert {each.state for each in (*first, *second)} == {State.FAILED}
    assert (await response_of(store, old.command_id)).code == "UPLOAD_ABANDONED"
    for kept in (young, ready):
        assert await read(store, kept.command_id) == kept


# agents, tokens, deployments


async def test_agents_that_were_not_seen_are_removed(store: Store) -> None:
    await store.put_agent("gone", registration(), NOW)
    await store.put_agent("here", registration(), after(10))

    assert await store.purge_agents(after(10), 10) == 1

    left = (await store.list_agents(None, NOW, 10)).agents
    assert [agent.agent_id for agent in left] == ["here"]


async def test_an_agent_is_removed_by_name_unless_it_holds_a_command(store: Store) -> None:
    await store.put_agent("agent-1", registration(), NOW)
    held = await leased(store)

    with pytest.raises(Conflict, match="holds"):
        await store.remove_agent(DEPLOYMENT, "agent-1")
    await store.complete(held.command_id, held.lease_id, RESULT, NOW)

    assert not await store.remove_agent("dep-2", "agent-1")
    assert await store.remove_agent(DEPLOYMENT, "agent-1")
    assert not (await store.list_agents(None, after(-1), 10)).agents


async def test_ended_tokens_are_forgotten_after_their_time(store: Store) -> None:
    good = token()
    expired, revoked = token(expires_at=after(10)), token()
    for each in (good, expired, revoked):
        await store.put_token(each, secret(each))
    await store.revoke_token(revoked.token_id, after(10))

    assert await store.purge_tokens(after(10), 10) == 0
    assert await store.purge_tokens(after(11), 10) == 2

    assert [each.token_id for each in await store.list_tokens()] == [good.token_id]


async def test_a_deployment_is_removed_once_nothing_of_it_is_live(store: Store) -> None:
    held = await leased(store)
    enrol = EnrolToken(
        token_hash=b"h",
        token_id="etok_1",
        deployment_id=DEPLOYMENT,
        uses=1,
        created_at=NOW,
        expires_at=after(60),
    )
    await store.put_enrol_token(enrol)

    with pytest.raises(Conflict, match="cancel it first"):
        await store.remove_deployment(DEPLOYMENT, NOW)
    await store.complete(held.command_id, held.lease_id, RESULT, NOW)
    with pytest.raises(Conflict, match="revoke it first"):
        await store.remove_deployment(DEPLOYMENT, NOW)
    await store.revoke_enrol_token("etok_1", NOW)

    assert await store.remove_deployment(DEPLOYMENT, NOW)
    assert not await store.remove_deployment(DEPLOYMENT, NOW)
    assert await store.get_deployment(DEPLOYMENT) is None
    assert (await store.get(held.command_id)) is not None


# the journal


async def test_the_journal_forgets_only_what_no_restore_could_bring_back(folder: Path) -> None:
    store = await SqliteStore.open(folder / "arc.db")
    for_ever, expiring = token(), token(expires_at=after(50))
    for each in (for_ever, expiring):
        await store.put_token(each, secret(each))
        await store.revoke_token(each.token_id, NOW)

    def journal() -> list[str]:
        return [line.id for line in read_journal(folder / JOURNAL)]

    await purged(store, after(10))
    assert not await store.list_tokens()
    assert journal() == [for_ever.token_id, expiring.token_id], "a backup may have it as good"
    await purged(store, after(51))
    assert journal() == [for_ever.token_id], "it has expired besides"
    await store.close()

    again = await SqliteStore.open(folder / "arc.db")
    await again.close()
    assert journal() == [for_ever.token_id]


async def test_the_journal_keeps_the_line_of_a_token_that_the_database_still_has(
    folder: Path,
) -> None:
    store = await SqliteStore.open(folder / "arc.db")
    kept = token(expires_at=after(50))
    await store.put_token(kept, secret(kept))
    await store.revoke_token(kept.token_id, after(40))

    await purged(store, after(30))

    assert [line.id for line in read_journal(folder / JOURNAL)] == [kept.token_id]
    await store.close()


async def purged(store: Store, before: Any) -> None:
    """Purge tokens until nothing is left."""
    while await store.purge_tokens(before, 10):
        pass


# the size of a batch


@pytest.fixture
def session() -> Iterator[StoreSession]:
    """A session on a database in memory with 300 ended commands, one of them with 5,000 lines."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    schema.migrate(connection)
    for seq in range(1, 301):
        connection.execute(
            "INSERT INTO commands (seq, command_id, deployment_id, target_id, target_type, command,"
            " state, attempt, max_attempts, created_at, is_push, completed_at)"
            " VALUES (?, ?, 'd', 't', 'daemon', 'c', 'SUCCEEDED', 1, 1, 1, 0, ?)",
            (seq, f"cmd_{seq}", seq),
        )
    connection.execute("INSERT INTO event_streams VALUES (10, 'l', 5000, 5000, 0, 0, NULL, 0)")
    connection.executemany(
        "INSERT INTO event_lines VALUES (10, ?, 1, 1, 'info', 'text')",
        [(place,) for place in range(5_000)],
    )
    yield StoreSession(connection, queries.load())
    connection.close()


def ticking(step: float) -> Any:
    """Return a timer by which each look takes `step` seconds."""
    counter = itertools.count()
    return lambda: next(counter) * step


def test_a_batch_ends_when_its_time_is_over_whatever_its_limit(session: StoreSession) -> None:
    step = retention.BATCH_SECONDS / 8

    purged = retention.purge_commands(session, State.SUCCEEDED, NOW, NOW, 1_000, ticking(step))

    assert 5 <= len(purged.command_ids) <= 8
    assert not purged.is_done


def test_a_command_with_many_events_takes_several_batches(session: StoreSession) -> None:
    retention.purge_commands(session, State.SUCCEEDED, NOW, NOW, 9, ticking(0))
    sizes: list[int] = []
    step = retention.BATCH_SECONDS / 3

    while session.rows("first_event_line", seq=10):
        before = session.connection.total_changes
        retention.purge_commands(session, State.SUCCEEDED, NOW, NOW, 1_000, ticking(step))
        sizes.append(session.connection.total_changes - before)

    assert max(sizes) <= 3 * retention.LINES_AT_A_TIME + 10
    assert len(sizes) >= 4


def test_a_batch_makes_one_step_however_slow_the_disk_is(session: StoreSession) -> None:
    slow = ticking(10 * retention.BATCH_SECONDS)

    for number in range(1, 10):
        purged = retention.purge_commands(session, State.SUCCEEDED, NOW, NOW, 100, slow)
        assert purged.command_ids == [f"cmd_{number}"]
    stripped = retention.strip_bodies(session, State.SUCCEEDED, START, NOW, 100, slow)
    assert stripped.mark == (10, 10)


def test_no_batch_takes_half_of_what_a_write_may_wait() -> None:
    assert timedelta(seconds=retention.BATCH_SECONDS) * 2 < timedelta(milliseconds=50)
