"""The sweeper notices what time brings about, also when the clock jumps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from arc_protocol import lifecycle
from arc_protocol.errors import StorageOperationFailed, StoreUnavailable
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import ErrorResponse
from arc_protocol.messages.leases import LeaseInfo
from arc_server.service.sweeper import CLOCK_JUMP_SECONDS, Sweeper, SweepLimits
from tests.support.service_fakes import Gate
from tests.support.service_world import World
from tests.support.waiting import until

HOUR = 3_600.0
TEN_YEARS = 10 * 365 * 86_400.0
JUMPS = (HOUR, -HOUR, TEN_YEARS, -TEN_YEARS)
GRACE = SweepLimits().outage_grace_seconds

WorldOf = Callable[..., World]


async def state_of(world: World, command_id: str) -> State:
    """Return a command as it is stored, before any judgement of its deadline."""
    found = await world.raw_store.get(command_id)
    return found.command.state


async def attempt_of(world: World, command_id: str) -> int:
    found = await world.raw_store.get(command_id)
    return found.command.attempt


async def leased(world: World, seconds: int = 60, **more: Any) -> LeaseInfo:
    await world.create(**more)
    return await world.lease(seconds=seconds)


async def is_held(world: World, lease: LeaseInfo) -> bool:
    """Return True if no other agent has been or could be given the command."""
    found = await world.raw_store.get(lease.command_id)
    return found.command.state is State.DISPATCHED and found.command.lease_id == lease.lease_id


# by itself


async def test_a_deadline_is_noticed_within_a_second_with_nobody_asking(world: World) -> None:
    created = await world.create(deadline_in=10)
    waiting = asyncio.ensure_future(world.status(created.command_id, wait=60))
    sweeping = asyncio.ensure_future(world.sweeper.run())
    await until(lambda: world.clock.sleeping)
    for _ in range(19):
        await half_a_second(world)
    assert await state_of(world, created.command_id) is State.PENDING

    await half_a_second(world)
    await half_a_second(world)

    assert await state_of(world, created.command_id) is State.EXPIRED
    assert (await asyncio.wait_for(waiting, 5)).state is State.EXPIRED
    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)


async def half_a_second(world: World) -> None:
    """Let the loop come round once more."""
    ticks = world.store.calls.count("requeue_lapsed")
    world.clock.advance(0.5)
    await until(lambda: world.clock.sleeping and world.store.calls.count("requeue_lapsed") > ticks)


@pytest.mark.parametrize("state", [State.PENDING_UPLOAD, State.PENDING, State.DISPATCHED])
async def test_every_live_state_expires(world: World, state: State) -> None:
    if state is State.PENDING_UPLOAD:
        created = await world.upload(5, deadline_in=10)
    else:
        created = await world.create(deadline_in=10)
    if state is State.DISPATCHED:
        await world.lease()
    assert await state_of(world, created.command_id) is state

    await world.pass_time(9.5)
    assert await state_of(world, created.command_id) is state
    await world.pass_time(0.5)

    assert await state_of(world, created.command_id) is State.EXPIRED


async def test_a_lapsed_lease_is_redelivered_with_the_next_attempt(world: World) -> None:
    lease = await leased(world, seconds=10)
    polling = asyncio.ensure_future(world.poll(wait=60))
    await world.quiet()

    await world.pass_time(9.9)
    assert not polling.done()
    await world.pass_time(0.1)

    (again,) = (await asyncio.wait_for(polling, 5)).leases
    assert again.command_id == lease.command_id
    assert again.attempt == 2
    assert again.lease_id != lease.lease_id


async def test_when_the_attempts_are_used_up_the_command_fails_and_says_why(
    world: World,
) -> None:
    created = await world.create(max_attempts=3)
    for attempt in (1, 2, 3):
        assert (await world.lease(seconds=10)).attempt == attempt
        await world.pass_time(10)

    status = await world.status(created.command_id)

    assert status.state is State.FAILED
    assert status.attempt == 3
    assert isinstance(status.response, ErrorResponse)
    assert status.response.code == lifecycle.MAX_ATTEMPTS_EXCEEDED
    assert (await world.poll()).leases == []


async def test_more_is_due_than_fits_a_batch(world_of: WorldOf) -> None:
    world = world_of(sweep=SweepLimits(batch=10))
    await world.sweeper.tick()
    overdue = [(await world.create("d2", deadline_in=4)).command_id for _ in range(95)]
    lapsing = [(await world.create()).command_id for _ in range(95)]
    await world.poll(count=100, seconds=4)
    world.store.calls.clear()

    await world.pass_time(4)

    assert {await state_of(world, one) for one in overdue} == {State.EXPIRED}
    assert {await state_of(world, one) for one in lapsing} == {State.PENDING}
    assert {await attempt_of(world, one) for one in lapsing} == {2}
    assert world.store.calls.count("expire_due") == 10
    assert world.store.calls.count("requeue_lapsed") == 10


async def test_exactly_a_batch_ends_with_an_empty_one(world_of: WorldOf) -> None:
    world = world_of(sweep=SweepLimits(batch=10))
    await world.sweeper.tick()
    for _ in range(10):
        await world.create(deadline_in=4)
    world.store.calls.clear()

    await world.pass_time(4)

    assert world.store.calls.count("expire_due") == 2


async def test_two_sweepers_at_once_count_a_lapse_once(world: World) -> None:
    other = world.restarted()
    await other.sweeper.tick()
    lease = await leased(world, seconds=4)
    world.clock.advance(4)

    await asyncio.gather(*(each.sweeper.tick() for each in (world, other) * 5))

    assert await attempt_of(world, lease.command_id) == 2


async def test_a_response_between_two_looks_of_a_sweep_stands(world: World) -> None:
    lease = await leased(world, seconds=4)
    world.clock.advance(4)
    gate = world.store.gates["requeue_lapsed"] = Gate()
    sweeping = asyncio.ensure_future(world.sweeper.tick())
    await gate.arrived.wait()

    await world.respond(lease)
    gate.open()
    await sweeping

    assert await state_of(world, lease.command_id) is State.SUCCEEDED


# outages


async def test_leases_that_ran_out_while_the_server_was_gone_are_kept_for_their_holders(
    world: World,
) -> None:
    lease = await leased(world, seconds=10)
    await world.pass_time(3)
    world.clock.advance(120)

    restarted = world.restarted()
    await restarted.sweeper.tick()
    await restarted.pass_time(GRACE - 1)

    assert await is_held(restarted, lease)
    assert (await restarted.poll()).leases == []
    renewed = await restarted.renew(lease.lease_id, seconds=10)
    assert renewed.lost == []
    await restarted.pass_time(9)
    await restarted.respond(lease)
    status = await restarted.status(lease.command_id)
    assert status.state is State.SUCCEEDED
    assert status.attempt == 1


async def test_after_the_grace_a_dead_holders_command_goes_to_another(world: World) -> None:
    lease = await leased(world, seconds=10)
    await world.pass_time(3)
    world.clock.advance(120)

    restarted = world.restarted()
    await restarted.sweeper.tick()
    await restarted.pass_time(GRACE - 0.5)
    assert await is_held(restarted, lease)
    await restarted.pass_time(0.5)

    assert (await restarted.lease()).attempt == 2


async def test_leases_that_would_run_out_before_their_holders_find_the_server_are_kept(
    world: World,
) -> None:
    lease = await leased(world, seconds=60)
    await world.pass_time(3)
    world.clock.advance(56)  # a second is left

    restarted = world.restarted()
    await restarted.sweeper.tick()
    await restarted.pass_time(GRACE - 1)

    assert await is_held(restarted, lease)


async def test_leases_that_last_longer_than_the_grace_are_left_alone(world: World) -> None:
    lease = await leased(world, seconds=300)
    await world.pass_time(3)
    world.clock.advance(100)

    restarted = world.restarted()
    await restarted.sweeper.tick()
    await restarted.pass_time(196)
    assert await is_held(restarted, lease)
    await restarted.pass_time(1)

    assert not await is_held(restarted, lease)


async def test_a_server_that_dies_before_its_first_sign_of_life_is_missed_too(
    world_of: WorldOf,
) -> None:
    world = world_of()
    await world.sweeper.tick()
    lease = await leased(world, seconds=10)
    assert await world.raw_store.last_sign_of_life() is None
    world.clock.advance(120)

    restarted = world.restarted()
    await restarted.sweeper.tick()
    await restarted.pass_time(GRACE - 1)

    assert await is_held(restarted, lease)


async def test_a_server_that_was_stopped_gives_the_same_grace(world: World) -> None:
    lease = await leased(world, seconds=10)
    await world.pass_time(4)
    world.clock.advance(600)

    await world.sweeper.tick()
    assert await is_held(world, lease)
    await world.pass_time(GRACE - 1)
    assert await is_held(world, lease)
    await world.pass_time(1)

    assert (await world.lease()).attempt == 2


@pytest.mark.parametrize("fails", ["everything", "expire_due", "requeue_lapsed"])
async def test_a_store_that_was_away_gives_the_same_grace(world: World, fails: str) -> None:
    lease = await leased(world, seconds=10)
    if fails == "everything":
        world.store.is_away = True
    else:
        world.store.away = {fails}
    for _ in range(15):
        world.clock.advance(4)
        with pytest.raises(StoreUnavailable):
            await world.sweeper.tick()
    world.store.is_away, world.store.away = False, set()

    await world.pass_time(GRACE - 1)
    assert await is_held(world, lease)
    await world.pass_time(6)

    assert (await world.lease()).attempt == 2


async def test_a_pause_that_is_no_outage_gives_no_grace(world: World) -> None:
    lease = await leased(world, seconds=5)

    world.clock.advance(world.sweep_limits.outage_seconds)
    await world.sweeper.tick()

    assert not await is_held(world, lease)


async def test_an_outage_ends_once(world: World, logged: list[Any]) -> None:
    lease = await leased(world, seconds=10)
    world.clock.advance(60)
    world.store.fail_at = len(world.store.calls) + 3  # after the grace is given
    with pytest.raises(StoreUnavailable):
        await world.sweeper.tick()

    await world.pass_time(GRACE)

    assert not await is_held(world, lease)
    assert sum(event["event"] == "outage.ended" for event in logged) == 1


async def test_what_always_fails_beside_the_sweep_does_not_keep_leases_alive(
    world: World,
) -> None:
    lease = await leased(world, seconds=10)
    world.store.away = {"has_live_leases"}
    for _ in range(6):
        world.clock.advance(2)
        with pytest.raises(StoreUnavailable):
            await world.sweeper.tick()

    assert not await is_held(world, lease)
    assert await attempt_of(world, lease.command_id) == 2


async def test_deadlines_pass_in_an_outage_as_ever(world: World) -> None:
    created = await world.create(deadline_in=30)
    await world.lease(seconds=10)
    world.clock.advance(60)

    await world.sweeper.tick()

    assert await state_of(world, created.command_id) is State.EXPIRED


async def test_signs_of_life_are_left_while_a_lease_could_lapse(world: World) -> None:
    await world.pass_time(20, step=1)
    assert await world.raw_store.last_sign_of_life() is None
    lease = await leased(world, seconds=60)
    world.store.calls.clear()

    await world.pass_time(10, step=0.5)

    assert await world.raw_store.last_sign_of_life() == world.clock.now()
    assert world.store.calls.count("sign_of_life") == 5
    await world.respond(lease)
    world.store.calls.clear()
    await world.pass_time(10)
    assert "sign_of_life" not in world.store.calls


# a wall clock that is set


Step = Callable[[World, LeaseInfo], Coroutine[Any, Any, LeaseInfo]]


async def before_it(world: World, lease: LeaseInfo) -> LeaseInfo:
    return lease


async def granted_unnoticed(world: World, lease: LeaseInfo) -> LeaseInfo:
    """Grant a lease after the jump and before the sweeper has seen it."""
    await world.leases.release(lease.lease_id, costs_attempt=False)
    return await world.lease(seconds=60)


async def renewed_unnoticed(world: World, lease: LeaseInfo) -> LeaseInfo:
    assert (await world.renew(lease.lease_id, seconds=60)).lost == []
    return lease


async def granted_in_the_middle(world: World, lease: LeaseInfo) -> LeaseInfo:
    """A lease granted while what is stored is being moved."""
    gate = world.store.gates["shift_leases"] = Gate()
    sweeping = asyncio.ensure_future(world.sweeper.tick())
    gate.enter.set()
    await gate.done.wait()
    await world.leases.release(lease.lease_id, costs_attempt=False)
    granted = await world.lease(seconds=60)
    gate.leave.set()
    await sweeping
    return granted


@pytest.mark.parametrize(
    "step", [before_it, granted_unnoticed, renewed_unnoticed, granted_in_the_middle]
)
@pytest.mark.parametrize("jump", JUMPS)
async def test_a_wall_clock_that_is_set_ends_no_lease_early_or_late(
    world: World, jump: float, step: Step
) -> None:
    lease = await leased(world, seconds=60)
    world.clock.jump_wall(jump)

    lease = await step(world, lease)
    await world.pass_time(59.5)
    assert await is_held(world, lease)
    await world.pass_time(0.5)

    assert not await is_held(world, lease)
    assert await attempt_of(world, lease.command_id) == 2
    assert abs(world.clock.drift()) <= CLOCK_JUMP_SECONDS


async def test_many_jumps_one_after_the_other_end_no_lease(world: World) -> None:
    lease = await leased(world, seconds=60)
    for number in range(59):
        world.clock.jump_wall(JUMPS[number % 4] + number)
        await world.pass_time(1)
        assert await is_held(world, lease)

    await world.pass_time(1)

    assert not await is_held(world, lease)


async def test_small_corrections_of_the_wall_clock_are_followed(world: World) -> None:
    lease = await leased(world, seconds=60)
    for _ in range(100):
        world.clock.jump_wall(0.4)
        await world.sweeper.tick()

    assert world.clock.drift() == pytest.approx(0)
    assert "shift_leases" not in world.store.calls
    assert await is_held(world, lease)


@pytest.mark.parametrize("jump", [HOUR, TEN_YEARS])
async def test_deadlines_follow_the_wall_clock(world: World, jump: float) -> None:
    created = await world.create(deadline_in=1_800)

    world.clock.jump_wall(jump)
    await world.sweeper.tick()

    assert await state_of(world, created.command_id) is State.EXPIRED


async def test_a_wall_clock_set_back_puts_deadlines_off(world: World) -> None:
    created = await world.create(deadline_in=10)
    world.clock.jump_wall(-HOUR)
    await world.pass_time(1_000, step=4)

    assert await state_of(world, created.command_id) is State.PENDING


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_store_that_is_away_while_the_clock_jumps_moves_leases_once_it_is_back(
    world: World, jump: float
) -> None:
    lease = await leased(world, seconds=60)
    await world.pass_time(4)
    world.clock.jump_wall(jump)
    world.store.away = {"shift_leases"}
    for _ in range(4):
        world.clock.advance(1)
        with pytest.raises(StoreUnavailable):
            await world.sweeper.tick()
    world.store.away = set()
    again = await granted_unnoticed(world, lease)

    await world.pass_time(59)
    assert await is_held(world, again)
    await world.pass_time(1)

    assert not await is_held(world, again)


@pytest.mark.parametrize("jump", [-HOUR, -TEN_YEARS])
async def test_a_clock_set_back_while_the_server_was_down_ends_no_lease_early(
    world: World, jump: float
) -> None:
    lease = await leased(world, seconds=60)
    await world.pass_time(4)
    restarted = world.restarted()
    restarted.clock.advance(10)
    restarted.clock.jump_wall(jump)
    restarted.clock.adjust(jump)  # a new process knows the new time only

    await restarted.sweeper.tick()
    await restarted.pass_time(45)
    assert await is_held(restarted, lease)
    await restarted.pass_time(30)

    assert not await is_held(restarted, lease)


@pytest.mark.parametrize("is_away", [True, False])
async def test_a_lease_granted_before_the_first_sweep_is_none_of_the_last_run(
    world: World, is_away: bool, logged: list[Any]
) -> None:
    old = await leased(world, seconds=60)
    await world.pass_time(4)
    restarted = world.restarted()
    restarted.clock.jump_wall(-HOUR)
    restarted.clock.adjust(-HOUR)
    if is_away:
        restarted.store.away = {"last_sign_of_life"}
    await restarted.sweeper.begin()
    restarted.store.away = set()
    assert any(event["event"] == "sweep.failing" for event in logged) == is_away
    new = None if is_away else await leased(restarted, seconds=60)

    await restarted.sweeper.tick()
    await restarted.pass_time(50)

    assert await is_held(restarted, old)
    assert new is None or await is_held(restarted, new)
    await restarted.pass_time(10)
    assert not await is_held(restarted, old)
    assert new is None or not await is_held(restarted, new)


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_clock_set_in_one_run_ends_no_lease_in_the_next(world: World, jump: float) -> None:
    first = await leased(world, seconds=60)
    await world.pass_time(4)
    world.clock.jump_wall(jump)
    await world.pass_time(4)

    restarted = world.restarted()
    restarted.clock.advance(2)
    await restarted.sweeper.tick()
    await restarted.pass_time(49.5)
    assert await is_held(restarted, first)
    await restarted.pass_time(GRACE + 1)

    assert not await is_held(restarted, first)


# failures


async def test_a_store_that_fails_at_any_call_of_a_tick_leaves_the_rest_for_the_next(
    world_of: WorldOf,
) -> None:
    failures = 0
    for number in range(1, 30):
        world = world_of(sweep=SweepLimits(presence_seconds=0, idempotency_sweep_seconds=0))
        deployment = f"d{number}"
        await world.sweeper.tick()
        await world.poll(deployment, agent="a1")
        overdue = await world.create(deployment, deadline_in=4)
        await world.create(deployment)
        lapsing = (await world.poll(deployment, count=2, seconds=4)).leases[1]
        world.clock.advance(4)
        world.store.calls.clear()
        world.store.fail_at = number
        try:
            await world.sweeper.tick()
        except StoreUnavailable:
            failures += 1
            world.store.fail_at = None
            await world.sweeper.tick()
        else:
            world.store.fail_at = None

        assert await state_of(world, overdue.command_id) is State.EXPIRED
        assert await state_of(world, lapsing.command_id) is State.PENDING
        assert await attempt_of(world, lapsing.command_id) == 2
        await world.commands.cancel(lapsing.command_id)
        if number > len(world.store.calls):
            break
    assert failures >= 4


@pytest.mark.parametrize(
    "failure", [StoreUnavailable("away"), StorageOperationFailed("no disk"), ValueError("a bug")]
)
async def test_the_loop_outlives_whatever_fails_and_says_so_once(
    world: World, failure: Exception, logged: list[Any]
) -> None:
    created = await world.create(deadline_in=10)
    sweeping = asyncio.ensure_future(world.sweeper.run())
    await until(lambda: world.clock.sleeping)
    world.store.raises = {"expire_due": failure}
    for _ in range(10):
        world.clock.advance(1)
        await until(lambda: world.clock.sleeping)
    world.store.raises = {}
    world.clock.advance(1)
    await until(lambda: world.clock.sleeping)

    assert await state_of(world, created.command_id) is State.EXPIRED
    told = [event["event"] for event in logged if event["event"].startswith("sweep.")]
    assert told == ["sweep.failing", "sweep.recovered"]
    sweeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sweeping


# keys


async def test_keys_are_swept_now_and_then_and_never_before_their_time(world: World) -> None:
    first = await world.create(key="k1")
    world.store.calls.clear()

    await world.pass_time(300)

    swept = world.store.calls.count("forget_idempotency_keys")
    assert 4 <= swept <= 6
    world.clock.advance(90_000)
    await world.sweeper.tick()
    assert (await world.create(key="k1")).command_id == first.command_id


async def test_keys_are_swept_in_batches(world: World) -> None:
    left = [500, 500, 3]
    asked: list[tuple[Any, int]] = []

    async def forget(before: Any, limit: int) -> int:
        asked.append((before, limit))
        return left.pop(0)

    class Forgetful:
        def __getattr__(self, name: str) -> Any:
            return forget if name == "forget_idempotency_keys" else getattr(world.store, name)

    sweeper = Sweeper(
        store=Forgetful(),  # type: ignore[arg-type]
        announcements=world.announcements,
        agents=world.agents,
        clock=world.clock,
        limits=SweepLimits(),
    )

    await sweeper.tick()

    assert left == []
    assert {limit for _, limit in asked} == {500}
    assert {(world.clock.now() - before).total_seconds() for before, _ in asked} == {86_400}


# delays


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_poll_that_waits_gets_a_delayed_command_within_a_second_of_its_instant(
    world: World, is_restarted: bool
) -> None:
    not_before = world.clock.now() + timedelta(seconds=10)
    created = await world.create(not_before=not_before)
    if is_restarted:
        world = world.restarted()
    polling = asyncio.ensure_future(world.poll(wait=60))
    sweeping = asyncio.ensure_future(world.sweeper.run())
    await until(lambda: world.clock.sleeping)
    for _ in range(19):
        await half_a_second(world)
    assert not polling.done()

    await half_a_second(world)
    await half_a_second(world)

    [lease] = (await polling).leases
    assert lease.command_id == created.command_id
    sweeping.cancel()


async def test_a_delayed_command_wakes_no_poll_when_it_is_created(world: World) -> None:
    polling = asyncio.ensure_future(world.poll(wait=60))
    await world.quiet()
    looks = world.store.calls.count("lease")

    await world.create(not_before=world.clock.now() + timedelta(seconds=10))
    await world.quiet()

    assert world.store.calls.count("lease") == looks
    world.close()
    await polling


async def test_a_delayed_command_waits_for_no_agent(world: World) -> None:
    created = await world.create(not_before=world.clock.now() + timedelta(seconds=900))
    world.clock.advance(700)

    assert (await world.status(created.command_id)).waiting is None
