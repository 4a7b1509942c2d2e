"""Commands that are not to run before an instant."""

from __future__ import annotations

import pytest

from arc_protocol.messages.base import State
from arc_server.ports.records import PushLease, StoredInline
from arc_server.ports.store import Store
from arc_server.store.sqlite_store import SqliteStore
from tests.support.store_samples import (
    DEPLOYMENT,
    NOW,
    UPLOAD,
    after,
    create,
    deployment,
    granted_ids,
    ids,
    lease,
    new,
    pushed,
    read,
)


async def test_a_delayed_command_is_pending_and_not_leased_until_it_is_released(
    store: Store,
) -> None:
    delayed = await create(store, not_before=after(10))
    ready = await create(store)

    assert (delayed.state, delayed.not_before) == (State.PENDING, after(10))
    assert granted_ids(await lease(store, 9, at=after(9))) == [ready.command_id]
    assert not await store.release_delayed(after(9), 10)
    assert ids(await store.release_delayed(after(10), 10)) == [delayed.command_id]
    assert not await store.release_delayed(after(11), 10)
    assert granted_ids(await lease(store, 9, at=after(11))) == [delayed.command_id]


async def test_an_instant_that_has_come_delays_nothing(store: Store) -> None:
    command = await create(store, not_before=NOW)

    assert not await store.release_delayed(after(1), 10)
    assert granted_ids(await lease(store)) == [command.command_id]


async def test_delayed_commands_come_behind_the_ready_ones_the_earliest_first(
    store: Store,
) -> None:
    late = await create(store, not_before=after(3))
    early = await create(store, not_before=after(2))
    ready = await create(store)

    await store.release_delayed(after(5), 1)
    await store.release_delayed(after(5), 1)

    order = granted_ids(await lease(store, 9, at=after(5)))
    assert order == [ready.command_id, early.command_id, late.command_id]


async def test_a_redelivered_command_was_released_for_good(store: Store) -> None:
    command = await create(store, not_before=after(1))
    await store.release_delayed(after(1), 10)
    await lease(store, at=after(1))
    await store.requeue_lapsed(after(62), 10)

    assert granted_ids(await lease(store, at=after(62))) == [command.command_id]


async def test_params_that_come_early_do_not_end_the_delay(store: Store) -> None:
    command = await create(store, params=UPLOAD, not_before=after(10))
    uploaded = await store.mark_uploaded(command.command_id, StoredInline(data=b"{}"), after(1))

    assert uploaded.state is State.PENDING
    assert granted_ids(await lease(store, 9, at=after(2))) == []
    await store.release_delayed(after(10), 10)
    assert granted_ids(await lease(store, 9, at=after(10))) == [command.command_id]


async def test_a_delayed_command_can_be_cancelled_and_expires(store: Store) -> None:
    cancelled = await create(store, not_before=after(10))
    expired = await create(store, not_before=after(10), deadline=after(11))

    await store.cancel(cancelled.command_id, after(1))
    await store.expire_due(after(11), 10)

    assert not await store.release_delayed(after(12), 10)
    assert (await read(store, cancelled.command_id)).error_code == "CANCELLED"
    assert (await read(store, expired.command_id)).state is State.EXPIRED


@pytest.mark.parametrize("is_uploaded", [True, False])
async def test_a_push_is_due_when_its_instant_has_come(store: Store, is_uploaded: bool) -> None:
    await store.put_deployment(pushed(), NOW)
    push_lease = PushLease("lease_early", after(60))
    params = UPLOAD if is_uploaded else StoredInline(data=b"{}")
    made = await store.create(new(not_before=after(10), push_lease=push_lease, params=params))
    command = made.command
    if is_uploaded:
        data = StoredInline(data=b"{}")
        command = await store.mark_uploaded(command.command_id, data, after(1), push_lease)

    assert command.state is State.PENDING
    assert await store.next_push_at() == after(10)
    assert granted_ids(await store.lease_push(["lease_1"], 60, after(9))) == []
    assert granted_ids(await store.lease_push(["lease_2"], 60, after(10))) == [command.command_id]


async def test_the_delay_stays_when_the_push_url_comes_and_goes(store: Store) -> None:
    await store.put_deployment(deployment(), NOW)
    command = await create(store, not_before=after(10))
    await store.set_push(DEPLOYMENT, "https://worker.example/push", None, after(1))
    assert await store.next_push_at() == after(10)
    assert granted_ids(await store.lease_push(["lease_1"], 60, after(2))) == []

    await store.set_push(DEPLOYMENT, None, None, after(3))

    assert granted_ids(await lease(store, 9, at=after(4))) == []
    await store.release_delayed(after(10), 10)
    assert granted_ids(await lease(store, 9, at=after(10))) == [command.command_id]


async def test_a_clock_that_is_set_moves_no_delay(store: Store) -> None:
    await store.put_deployment(pushed(), NOW)
    await create(store, not_before=after(10))

    await store.shift_leases(-3_600)

    assert await store.next_push_at() == after(10)


async def test_after_a_restore_delayed_commands_wait_with_the_others(sqlite: SqliteStore) -> None:
    command = await create(sqlite, not_before=after(1))
    await sqlite.database.writes.submit(
        lambda db: db.connection.execute(
            "INSERT INTO epochs (epoch, numbers_from, backed_up_at) VALUES ('e2', 100000, 1)"
        )
    )
    await sqlite.begin_epoch(NOW, freeze_seconds=30, unknown_key_seconds=60)

    assert not await sqlite.release_delayed(after(10), 10)
    assert ids(await sqlite.release_delayed(after(31), 10)) == [command.command_id]
