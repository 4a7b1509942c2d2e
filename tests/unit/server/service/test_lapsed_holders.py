"""A holder that let its lease lapse may be a connection without an agent behind it."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from arc_server.service.announcements import Announcements
from tests.support.service_world import World
from tests.support.waiting import until


async def test_a_lapsed_lease_is_not_handed_to_the_waiting_poll_of_its_own_holder(
    world: World,
) -> None:
    created = await world.create()
    await world.lease(agent="frozen", seconds=10)
    frozen = asyncio.ensure_future(world.poll(agent="frozen", wait=60))
    await until(lambda: world.announcements.work.count == 1)
    other = asyncio.ensure_future(world.poll(agent="other", wait=60))
    await until(lambda: world.announcements.work.count == 2)

    await world.pass_time(11)

    [lease] = (await other).leases
    assert (lease.command_id, lease.attempt) == (created.command_id, 2)
    assert (await frozen).leases == []


async def test_a_holder_that_asks_again_gets_the_command_that_it_let_lapse(world: World) -> None:
    created = await world.create()
    await world.lease(agent="alone", seconds=10)
    waiting = asyncio.ensure_future(world.poll(agent="alone", wait=60))
    await until(lambda: world.announcements.work.count == 1)

    await world.pass_time(11)
    assert (await waiting).leases == []
    lease = await world.lease(agent="alone")

    assert (lease.command_id, lease.attempt) == (created.command_id, 2)


async def test_a_dismissed_waiter_passes_on_a_wakeup_that_it_had() -> None:
    announcements = Announcements()
    with ExitStack() as answering:
        first = answering.enter_context(announcements.work.waiter("d", "t", ("d", "first", None)))
        with announcements.work.waiter("d", "t", ("d", "second", None)) as second:
            first.arm()
            second.arm()
            announcements.work.wake("d", "t")

            announcements.work.dismiss(("d", "first", None))
            answering.close()

            assert (first.is_dismissed, second.is_dismissed) == (True, False)
            assert await second.sleep(5)
