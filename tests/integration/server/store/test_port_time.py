"""Time alone: leases that lapse, deadlines that pass, and a clock that moves."""

from __future__ import annotations

from arc_protocol.messages.base import State
from arc_server.ports.records import StoredError
from arc_server.ports.store import Store
from tests.support.store_samples import (
    NOW,
    RESULT,
    UPLOAD,
    after,
    create,
    granted_ids,
    ids,
    lease,
    leased,
    read,
    response_of,
)


async def test_live_commands_past_their_deadline_expire_the_earliest_first(
    store: Store,
) -> None:
    held = await leased(store, command_id="cmd_held", deadline=after(30))
    await create(store, command_id="cmd_upload", params=UPLOAD, deadline=after(20))
    await create(store, command_id="cmd_pending", deadline=after(10))
    await create(store, command_id="cmd_later", deadline=after(31))
    await create(store, command_id="cmd_never")

    first = await store.expire_due(after(30), 2)
    second = await store.expire_due(after(30), 2)

    assert ids(first) == ["cmd_pending", "cmd_upload"]
    assert ids(second) == [held.command_id]
    assert not await store.expire_due(after(30), 2)
    for command in (*first, *second):
        assert command.state is State.EXPIRED
        assert command.completed_at == after(30)
        assert await read(store, command.command_id) == command
        assert await response_of(store, command.command_id) is None


async def test_a_terminal_command_never_expires(store: Store) -> None:
    held = await leased(store, deadline=after(10))
    await store.complete(held.command_id, held.lease_id, RESULT, after(5))

    assert not await store.expire_due(after(11), 10)


async def test_lapsed_leases_are_redelivered_the_longest_lapsed_first(store: Store) -> None:
    for number, seconds in enumerate((30, 10, 20, 40)):
        await create(store, command_id=f"cmd_{number}")
        await lease(store, lease_seconds=seconds)

    first = await store.requeue_lapsed(after(30), 2)
    second = await store.requeue_lapsed(after(30), 2)

    assert ids(first) == ["cmd_1", "cmd_2"]
    assert ids(second) == ["cmd_0"]
    assert all(command.state is State.PENDING for command in (*first, *second))
    assert all(command.attempt == 2 for command in (*first, *second))
    granted = await lease(store, 9, at=after(31))
    assert granted_ids(granted) == ["cmd_0", "cmd_1", "cmd_2"]


async def test_a_lapse_of_the_last_attempt_fails_the_command(store: Store) -> None:
    held = await leased(store, max_attempts=1)

    [command] = await store.requeue_lapsed(after(60), 10)

    assert command.state is State.FAILED
    response = await response_of(store, held.command_id)
    assert isinstance(response, StoredError)
    assert response.code == "MAX_ATTEMPTS_EXCEEDED"


async def test_a_lapse_of_a_cancelled_command_fails_it(store: Store) -> None:
    held = await leased(store)
    await store.cancel(held.command_id, after(1))

    [command] = await store.requeue_lapsed(after(60), 10)

    assert command.state is State.FAILED
    response = await response_of(store, held.command_id)
    assert isinstance(response, StoredError)
    assert response.code == "CANCELLED"


async def test_a_lapse_past_the_deadline_expires_the_command(store: Store) -> None:
    await leased(store, deadline=after(50))

    [command] = await store.requeue_lapsed(after(60), 10)

    assert command.state is State.EXPIRED


async def test_attempts_never_go_down_and_end(store: Store) -> None:
    await create(store, command_id="cmd_a", max_attempts=4)
    seen = []

    for round_number in range(4):
        at = 100.0 * round_number
        [grant] = (await lease(store, at=after(at))).grants
        seen.append(grant.command.attempt)
        await store.requeue_lapsed(after(at + 60), 10)

    assert seen == [1, 2, 3, 4]
    assert (await read(store, "cmd_a")).state is State.FAILED


async def test_every_live_lease_moves_with_the_clock(store: Store) -> None:
    held, done = await leased(store), await leased(store)
    await store.complete(done.command_id, done.lease_id, RESULT, NOW)

    assert await store.shift_leases(-3600.5) == 1
    assert (await read(store, held.command_id)).lease_expires_at == after(60 - 3600.5)
    assert await store.shift_leases(3600.5) == 1

    assert await read(store, held.command_id) == held


async def test_grace_is_granted_to_leases_that_ran_out_in_the_gap_only(store: Store) -> None:
    for number, seconds in enumerate((9, 10, 20, 21)):
        await create(store, command_id=f"cmd_{number}")
        await lease(store, lease_seconds=seconds)

    assert await store.grant_grace(after(10), after(20), after(55)) == 2

    ends = [(await read(store, f"cmd_{number}")).lease_expires_at for number in range(4)]
    assert ends == [after(9), after(55), after(55), after(21)]


async def test_a_sign_of_life_never_moves_back(store: Store) -> None:
    assert await store.last_sign_of_life() is None

    await store.sign_of_life(after(5))
    await store.sign_of_life(after(3))
    assert await store.last_sign_of_life() == after(5)

    await store.sign_of_life(after(6))
    assert await store.last_sign_of_life() == after(6)


async def test_the_sign_of_life_moves_with_the_clock(store: Store) -> None:
    await store.sign_of_life(after(5))

    await store.shift_leases(-3600)

    assert await store.last_sign_of_life() == after(5 - 3600)


async def test_whether_anything_is_held_is_known(store: Store) -> None:
    assert not await store.has_live_leases()
    held = await leased(store)
    assert await store.has_live_leases()

    await store.complete(held.command_id, held.lease_id, RESULT, NOW)

    assert not await store.has_live_leases()
