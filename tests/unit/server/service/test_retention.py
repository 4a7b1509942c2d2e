"""Retention as a whole: commands with their blobs, uploads that never came, and orphans."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from arc_protocol.errors import (
    CommandNotFound,
    Conflict,
    InvalidStateTransition,
    StorageOperationFailed,
)
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import ErrorResponse, StorageBody, SuccessResponse
from arc_protocol.messages.leases import LeaseInfo
from arc_server.ports.records import Removed
from arc_server.service.retention import RetentionLimits
from tests.support.service_world import World, error, success
from tests.support.waiting import until

WorldOf = Callable[..., World]

DAY = 86_400.0
LARGE = b"x" * 2_000
"""Above the inline limit of the worlds: it becomes a blob."""


async def ended(world: World, response: Any = None, **more: Any) -> LeaseInfo:
    """Return the lease of a command that has ended."""
    await world.create(**more)
    lease = await world.lease()
    await world.respond(lease, response)
    return lease


async def is_there(world: World, command_id: str) -> bool:
    try:
        await world.status(command_id)
    except CommandNotFound:
        return False
    return True


async def test_each_state_is_kept_for_its_time(world: World) -> None:
    done, failed = await ended(world), await ended(world, error())
    expired = await world.create(deadline_in=1)
    waiting = await world.create()
    everything = [each.command_id for each in (done, failed, expired, waiting)]
    await world.pass_time(4)

    async def left() -> list[bool]:
        await world.retention.sweep()
        return [await is_there(world, command_id) for command_id in everything]

    world.clock.advance(29 * DAY)
    assert await left() == [True, True, True, True]
    world.clock.advance(1 * DAY)
    assert await left() == [False, True, True, True]
    world.clock.advance(60 * DAY + 10)
    assert await left() == [False, False, False, True]


async def test_a_clock_that_is_set_ahead_removes_nothing_for_a_day(world: World) -> None:
    lease = await ended(world)
    world.clock.jump_wall(365 * DAY)
    await world.sweeper.tick()

    assert await world.retention.sweep() == Removed()
    world.clock.advance(DAY - 1)
    assert await world.retention.sweep() == Removed()
    assert await is_there(world, lease.command_id)

    world.clock.advance(2)
    assert (await world.retention.sweep()).commands == 1


async def test_an_operator_may_purge_while_retention_is_held(world: World) -> None:
    await ended(world)
    world.clock.jump_wall(365 * DAY)
    await world.sweeper.tick()

    assert (await world.retention.purge(None)).commands == 1


async def test_the_blobs_of_a_command_go_with_it(world: World) -> None:
    await ended(world, success(LARGE), params=LARGE)
    assert len(world.blobs.blobs) == 2
    world.clock.advance(31 * DAY)

    removed = await world.retention.sweep()

    assert removed.commands == 1
    assert not world.blobs.blobs


async def test_bodies_may_go_before_their_command(world_of: WorldOf) -> None:
    world = world_of(retention=RetentionLimits(bodies_seconds=DAY, pause_seconds=0))
    lease = await ended(world, success(LARGE), params=LARGE)
    world.clock.advance(2 * DAY)

    removed = await world.retention.sweep()

    assert (removed.commands, removed.bodies) == (0, 2)
    assert not world.blobs.blobs
    status = await world.status(lease.command_id)
    assert status.state is State.SUCCEEDED
    assert isinstance(status.response, ErrorResponse)
    assert status.response.code == "RESPONSE_REMOVED"


async def test_an_upload_that_never_comes_ends_its_command_and_wakes_its_sender(
    world: World,
) -> None:
    created = await world.upload(2_000)
    waiting = asyncio.ensure_future(world.status(created.command_id, wait=60))
    await world.quiet()
    world.clock.advance(1.5 * DAY)

    removed = await world.retention.sweep()

    assert removed.uploads == 1
    status = await asyncio.wait_for(waiting, 5)
    assert isinstance(status.response, ErrorResponse)
    assert status.response.code == "UPLOAD_ABANDONED"
    assert created.storage_upload is not None
    await world.put(created.storage_upload.put_request, b"x" * 2_000)
    with pytest.raises(InvalidStateTransition):
        await world.commands.upload_complete(created.command_id, 2_000)
    assert (await world.retention.purge(None)).blobs == 1
    assert not world.blobs.blobs


async def test_the_collection_leaves_every_body_that_may_still_be_handed_in(world: World) -> None:
    awaited = await world.upload(2_000)
    assert awaited.storage_upload is not None
    await world.put(awaited.storage_upload.put_request, b"x" * 2_000)
    await world.create(params=LARGE, deployment_id="d2")
    lease = await world.lease("d2")
    upload = lease.envelope.response_handling.storage_upload_request
    await world.put(upload, LARGE)

    first = await world.retention.purge(None)
    await world.commands.upload_complete(awaited.command_id, 2_000)
    body = StorageBody(size=len(LARGE), storage_put_used=True)
    await world.respond(lease, SuccessResponse(response=body))
    second = await world.retention.purge(None)

    assert (first.blobs, second.blobs) == (0, 0)
    assert len(world.blobs.blobs) == 3


async def test_the_collection_takes_what_an_older_lease_has_uploaded(world: World) -> None:
    await world.create(max_attempts=3)
    stale = await world.lease(seconds=10)
    await world.put(stale.envelope.response_handling.storage_upload_request, LARGE)
    await world.pass_time(20)
    await world.lease()

    removed = await world.retention.purge(None)

    assert removed.blobs == 1
    assert not world.blobs.blobs


async def test_a_command_that_is_deleted_takes_its_bodies_along(world: World) -> None:
    lease = await ended(world, success(LARGE), params=LARGE)
    live = await world.create()

    assert await world.retention.delete_command(lease.command_id)

    assert not world.blobs.blobs
    assert not await world.retention.delete_command(lease.command_id)
    with pytest.raises(Conflict, match="cancel it first"):
        await world.retention.delete_command(live.command_id)


async def test_a_command_whose_blobs_cannot_be_deleted_is_deleted_all_the_same(
    world: World,
) -> None:
    lease = await ended(world, success(LARGE))
    world.blobs.refuse = {"delete_all": StorageOperationFailed("a broken disk")}

    assert await world.retention.delete_command(lease.command_id)

    world.blobs.refuse = {}
    assert not await is_there(world, lease.command_id)
    assert (await world.retention.purge(None)).blobs == 1


async def test_an_operator_may_purge_earlier_than_configured(world: World) -> None:
    old = await ended(world)
    world.clock.advance(2 * DAY)
    young = await ended(world)

    removed = await world.retention.purge(DAY)

    assert removed.commands == 1
    assert not await is_there(world, old.command_id)
    assert await is_there(world, young.command_id)


async def test_a_pass_works_in_batches(world_of: WorldOf) -> None:
    world = world_of(retention=RetentionLimits(batch=2, pause_seconds=0))
    for _ in range(5):
        await ended(world)
    world.clock.advance(31 * DAY)
    world.store.calls.clear()

    removed = await world.retention.sweep()

    assert removed.commands == 5
    assert world.store.calls.count("purge_commands") >= 5  # three for those that succeeded


async def test_the_loop_goes_on_after_a_failure_and_logs_it_once(
    world: World, logged: list[Any]
) -> None:
    world.store.is_away = True
    running = asyncio.ensure_future(world.retention.run())
    for _ in range(2):
        await until(lambda: world.clock.sleeping)
        world.clock.advance(60)
    await until(lambda: world.clock.sleeping)
    world.store.is_away = False
    world.clock.advance(60)
    await until(lambda: world.clock.sleeping)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    told = [event["event"] for event in logged if event["event"].startswith("retention.")]
    assert told == ["retention.failing", "retention.recovered"]


async def test_blobs_that_cannot_be_deleted_are_left_to_the_collection(world_of: WorldOf) -> None:
    world = world_of(retention=RetentionLimits(collection_seconds=1e9, pause_seconds=0))
    await world.retention.sweep()
    await ended(world, success(LARGE))
    world.clock.advance(31 * DAY)
    world.blobs.refuse["delete_all"] = Conflict("the disk fails")
    assert (await world.retention.sweep()).commands == 1
    assert len(world.blobs.blobs) == 1

    removed = await world.retention.purge(None)

    assert removed == Removed(blobs=1)


def test_a_command_is_kept_for_longer_than_the_life_of_its_key_by_default() -> None:
    limits = RetentionLimits()

    assert timedelta(seconds=limits.idempotency_key_seconds) < timedelta(
        seconds=min(limits.succeeded_seconds, limits.failed_seconds, limits.expired_seconds)
    )
