"""The attempts of a command: who held it, when, and how each lease ended."""

from __future__ import annotations

import pytest

from arc_protocol.errors import CommandNotFound
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.store.operations.transitions import KEPT_LEASES
from tests.support.service_world import World, error


async def outcomes(world: World, command_id: str) -> list[tuple[int, str | None, str | None]]:
    """Return attempt, holder and outcome of each."""
    found = await world.attempts.list(command_id, within=EVERYTHING)
    return [(each.attempt, each.holder, each.outcome) for each in found.attempts]


async def test_each_lease_is_kept_with_its_holder_and_how_it_ended(world: World) -> None:
    command_id = (await world.create(max_attempts=4)).command_id
    assert await outcomes(world, command_id) == []

    await world.lease(agent="one", seconds=10)
    assert await outcomes(world, command_id) == [(1, "one", None)]
    await world.pass_time(11)
    released = await world.lease(agent="two")
    await world.leases.release(released.lease_id)
    drained = await world.lease(agent="three")
    await world.leases.release(drained.lease_id, costs_attempt=False)
    begun = world.clock.now()
    last = await world.lease(agent="four")
    world.clock.advance(2)
    await world.respond(last)

    assert await outcomes(world, command_id) == [
        (1, "one", "LAPSED"),
        (2, "two", "RELEASED"),
        (3, "three", "RETURNED"),
        (3, "four", "SUCCEEDED"),
    ]
    latest = (await world.attempts.list(command_id, within=EVERYTHING)).attempts[-1]
    assert latest.leased_at == begun
    assert latest.ended_at == world.clock.now()


async def test_a_holder_that_responds_after_its_lease_lapsed_has_one_attempt(
    world: World,
) -> None:
    command_id = (await world.create()).command_id
    lease = await world.lease(agent="one", seconds=10)
    await world.pass_time(11)

    await world.respond(lease)

    assert await outcomes(world, command_id) == [(1, "one", "SUCCEEDED")]


async def test_what_is_cancelled_after_a_lapse_keeps_its_attempt(world: World) -> None:
    command_id = (await world.create()).command_id
    await world.lease(agent="one", seconds=10)
    await world.pass_time(11)
    await world.commands.cancel(command_id)

    assert await outcomes(world, command_id) == [(1, "one", "LAPSED")]


async def test_a_failure_ends_the_last_attempt(world: World) -> None:
    command_id = (await world.create()).command_id
    await world.respond(await world.lease(agent="one"), error())

    assert await outcomes(world, command_id) == [(1, "one", "FAILED")]


async def test_a_command_out_of_reach_has_no_attempts(world: World) -> None:
    command_id = (await world.create()).command_id

    with pytest.raises(CommandNotFound):
        await world.attempts.list(command_id, within=Reach(deployments=("other",)))


async def test_only_the_last_leases_are_kept(world: World) -> None:
    command_id = (await world.create()).command_id
    for _ in range(KEPT_LEASES + 5):
        lease = await world.lease(agent="one")
        await world.leases.release(lease.lease_id, costs_attempt=False)

    assert len(await outcomes(world, command_id)) == KEPT_LEASES
