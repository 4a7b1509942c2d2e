"""Polls that wait: what wakes them, and what a client that has gone leaves behind."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from arc_protocol.errors import StoreUnavailable
from arc_protocol.messages.base import CommandTarget, State
from arc_protocol.messages.leases import LeaseInfo
from arc_server.service.waits import Wait
from tests.support.service_fakes import Gate
from tests.support.service_world import World, daemon
from tests.support.waiting import until

GONE = ConnectionResetError("the client has gone")


async def test_a_waiting_poll_gets_a_command_as_soon_as_there_is_one(world: World) -> None:
    polling = asyncio.ensure_future(world.poll(wait=60))
    await world.quiet()
    assert not polling.done()

    command = await world.create()

    (lease,) = (await asyncio.wait_for(polling, 5)).leases
    assert lease.command_id == command.command_id


async def test_a_lease_is_counted_from_before_the_poll_that_waited_for_it(world: World) -> None:
    polling = asyncio.ensure_future(world.poll(wait=60, seconds=10))
    await world.quiet()
    await world.pass_time(40)

    await world.create()

    (lease,) = (await asyncio.wait_for(polling, 5)).leases
    assert lease.lease_seconds == 50
    assert lease.lease_expires_at == world.clock.now() + timedelta(seconds=10)


@pytest.mark.parametrize("target", [None, daemon("t1")])
async def test_as_many_waiting_polls_are_answered_as_commands_are_created(
    world: World, target: CommandTarget | None
) -> None:
    await world.poll(target=daemon("t1"))
    polls = [asyncio.ensure_future(world.poll(wait=60, target=target)) for _ in range(8)]
    await until(lambda: world.announcements.work.count == 8)

    ids = await asyncio.gather(*(world.create() for _ in range(5)))
    await until(lambda: sum(poll.done() for poll in polls) >= 5)
    await world.quiet()

    answered = [poll.result().leases for poll in polls if poll.done()]
    assert len(answered) == 5
    assert {lease.command_id for (lease,) in answered} == {one.command_id for one in ids}
    world.announcements.close()
    for answer in await asyncio.gather(*polls):
        assert len(answer.leases) <= 1


async def test_a_waiting_poll_ends_empty_with_its_time_after_one_look(world: World) -> None:
    assert (await world.poll(wait=0.01)).leases == []

    assert world.store.calls.count("lease") == 1
    assert world.announcements.work.count == 0


async def test_a_server_that_stops_answers_waiting_polls_empty(world: World) -> None:
    polls = [asyncio.ensure_future(world.poll(wait=60)) for _ in range(3)]
    await world.quiet()

    world.announcements.close()

    for answer in await asyncio.wait_for(asyncio.gather(*polls), 5):
        assert answer.leases == []
    assert (await asyncio.wait_for(world.poll(wait=60), 5)).leases == []


async def test_release_lapse_and_return_wake_a_waiting_poll(world: World) -> None:
    (one,) = await world.create_many(1)

    async def give_back(lease: LeaseInfo, how: str) -> None:
        if how == "release":
            await world.leases.release(lease.lease_id)
        elif how == "return":
            await world.leases.return_undelivered([lease.lease_id])
        else:
            await world.pass_time(61)

    for how in ("release", "return", "lapse"):
        lease = await world.lease()
        polling = asyncio.ensure_future(world.poll(wait=60))
        await world.quiet()
        await give_back(lease, how)
        (again,) = (await asyncio.wait_for(polling, 5)).leases
        assert again.command_id == one
        assert again.lease_id != lease.lease_id
        await world.leases.return_undelivered([again.lease_id])


async def test_a_client_gone_before_its_wait_leases_nothing(world: World) -> None:
    (one,) = await world.create_many(1)
    hold = Wait()
    hold.end(GONE)

    with pytest.raises(ConnectionResetError):
        await world.poll(wait=60, hold=hold)

    assert world.store.calls.count("lease") == 0
    assert (await world.status(one)).state is State.PENDING


async def test_a_client_gone_during_the_look_returns_its_leases_at_no_cost(world: World) -> None:
    ids = await world.create_many(3, max_attempts=1)
    gate = world.store.gates["lease"] = Gate()
    hold = Wait()
    polling = asyncio.ensure_future(world.poll(count=2, wait=60, hold=hold))
    gate.enter.set()
    await gate.done.wait()
    assert (await world.status(ids[0])).state is State.DISPATCHED
    other = asyncio.ensure_future(world.poll(count=3, wait=60))

    hold.end(GONE)
    gate.open()
    with pytest.raises(ConnectionResetError):
        await polling

    leases = (await asyncio.wait_for(other, 5)).leases
    leases += (await world.poll(count=3)).leases
    assert sorted(lease.command_id for lease in leases) == sorted(ids)
    assert {lease.attempt for lease in leases} == {1}


async def test_a_client_gone_while_a_poll_sleeps_ends_it(world: World) -> None:
    hold = Wait()
    polling = asyncio.ensure_future(world.poll(wait=60, hold=hold))
    await world.quiet()

    hold.end(GONE)
    with pytest.raises(ConnectionResetError):
        await polling

    assert world.announcements.work.count == 0


async def test_a_woken_waiter_that_leaves_passes_its_wakeup_on(world: World) -> None:
    hold = Wait()
    leaver = asyncio.ensure_future(world.poll(wait=60, hold=hold))
    await world.quiet()
    stayer = asyncio.ensure_future(world.poll(wait=60))
    await world.quiet()
    creating = asyncio.ensure_future(world.create())
    while world.announcements.work.count == 2:
        await asyncio.sleep(0)

    hold.end(GONE)
    with pytest.raises(ConnectionResetError):
        await leaver

    command = await creating
    (lease,) = (await asyncio.wait_for(stayer, 5)).leases
    assert lease.command_id == command.command_id


async def test_a_look_that_fails_passes_its_wakeup_on(world: World) -> None:
    first = asyncio.ensure_future(world.poll(wait=60))
    await world.quiet()
    second = asyncio.ensure_future(world.poll(wait=60))
    await world.quiet()
    world.store.away = {"lease"}
    creating = asyncio.ensure_future(world.create())
    await asyncio.gather(first, return_exceptions=True)
    world.store.away = set()

    command = await creating
    with pytest.raises(StoreUnavailable):
        await first
    second_answer = await asyncio.gather(second, return_exceptions=True)
    if isinstance(second_answer[0], StoreUnavailable):  # it had looked before the store was back
        second_answer = [await world.poll()]
    assert second_answer[0].leases[0].command_id == command.command_id


async def test_what_a_look_ended_and_granted_stands_though_nothing_can_be_read(
    world: World,
) -> None:
    overdue = await world.create(deadline_in=10)
    good = await world.create()
    waiting = asyncio.ensure_future(world.status(overdue.command_id, wait=60))
    await world.quiet()
    world.clock.advance(11)
    world.store.away = {"get"}

    lease = await world.lease()

    assert lease.command_id == good.command_id
    with pytest.raises(StoreUnavailable):
        await asyncio.wait_for(waiting, 5)


async def test_leases_whose_answer_could_not_be_written_go_back_at_no_cost(world: World) -> None:
    ids = await world.create_many(3, max_attempts=1)
    leases = (await world.poll(count=3)).leases
    await world.respond(leases[0])

    await world.leases.return_undelivered([*(one.lease_id for one in leases), "lease_none"])

    again = (await world.poll(count=3)).leases
    assert [lease.command_id for lease in again] == ids[1:]
    assert {lease.attempt for lease in again} == {1}


async def test_a_lease_that_cannot_be_returned_now_lapses(world: World) -> None:
    (one,) = await world.create_many(1)
    lease = await world.lease()
    world.store.away = {"release"}

    await world.leases.return_undelivered([lease.lease_id])

    world.store.away = set()
    await world.pass_time(61)
    assert (await world.lease()).command_id == one


# cancels reach their holders


async def test_a_cancel_reaches_a_waiting_holder_at_once(world: World) -> None:
    (one,) = await world.create_many(1)
    lease = await world.lease(agent="a1")
    mine = asyncio.ensure_future(world.poll(wait=60, agent="a1"))
    other = asyncio.ensure_future(world.poll(wait=60, agent="a2"))
    await world.quiet()

    await world.commands.cancel(one)

    answer = await asyncio.wait_for(mine, 5)
    assert answer.leases == []
    assert answer.cancelled == [lease.lease_id]
    await world.quiet()
    assert not other.done()
    renewed = await world.renew(lease.lease_id)
    assert renewed.cancelled == [lease.lease_id]
    world.announcements.close()
    await other


async def test_a_cancel_waits_for_the_holders_next_poll(world: World) -> None:
    (one,) = await world.create_many(1)
    lease = await world.lease(agent="a1")
    await world.commands.cancel(one)

    assert (await world.poll(agent="a2")).cancelled is None
    assert (await world.poll("d2", agent="a1")).cancelled is None
    assert (await world.poll(agent="a1")).cancelled == [lease.lease_id]
    assert (await world.poll(agent="a1")).cancelled is None
