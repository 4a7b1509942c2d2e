"""Commands that have ended are run again, as new ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from arc_protocol.errors import (
    CommandNotFound,
    CommandTargetNotFound,
    Conflict,
    IdempotencyKeyReused,
    InvalidCommand,
    InvalidStateTransition,
    StorageOperationFailed,
)
from arc_protocol.messages.base import State
from arc_protocol.messages.commands import CreateCommandResponse, RetryRequest
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.ports.records import Deployment
from tests.support.service_world import BASE, World, daemon, error, inline_of, path_of

LARGE = bytes(range(250)) * 20


async def retry(
    world: World, command_id: str, *, within: Reach = EVERYTHING, **fields: Any
) -> CreateCommandResponse:
    request = RetryRequest(**fields)
    return await world.commands.retry(command_id, request, base_url=BASE, within=within)


async def failed(world: World, **more: Any) -> str:
    """A command that its handler failed."""
    created = await world.create(**more)
    await world.respond(await world.lease(), error())
    return created.command_id


async def test_a_command_that_failed_runs_again_with_its_params(world: World) -> None:
    operator = Reach(credential="tok_operator")
    old = await failed(world, params=b'{"n":1}', max_attempts=2)

    again = await retry(world, old, within=operator)

    lease = await world.lease()
    status = await world.status(again.command_id)
    assert again.next == "poll"
    assert lease.command_id == again.command_id != old
    assert inline_of(lease.envelope.params) == b'{"n":1}'
    assert (status.retry_of, status.created_by) == (old, "tok_operator")
    assert (status.max_attempts, status.command, status.deployment_id) == (2, "run", "d1")
    assert (await world.status(old)).state is State.FAILED


@pytest.mark.parametrize("how", ["uploaded", "inline"])
async def test_large_params_are_there_for_both_commands(world: World, how: str) -> None:
    if how == "inline":
        old = (await world.create(params=LARGE)).command_id
    else:
        created = await world.upload(len(LARGE))
        assert created.storage_upload is not None
        await world.put(created.storage_upload.put_request, LARGE)
        await world.commands.upload_complete(created.command_id, len(LARGE))
        old = created.command_id
    await world.respond(await world.lease(), error())

    await retry(world, old)
    path = path_of((await world.lease()).envelope.params)

    assert path in world.blobs.sealed
    (former,) = set(world.blobs.blobs) - {path}
    assert world.blobs.blobs[path] == world.blobs.blobs[former] == LARGE


async def test_a_retry_with_a_used_key_is_the_retry_that_used_it(world: World) -> None:
    old = await failed(world, params=LARGE)
    other = await failed(world, params=LARGE)
    first = await retry(world, old, idempotency_key="k")
    blobs = dict(world.blobs.blobs)

    again = await retry(world, old, idempotency_key="k")
    with pytest.raises(IdempotencyKeyReused):
        await retry(world, other, idempotency_key="k")

    assert (again.command_id, again.is_replay) == (first.command_id, True)
    assert world.blobs.blobs == blobs, "the repeats left nothing behind"
    assert (await retry(world, old)).command_id != first.command_id


async def test_a_key_of_a_create_is_not_one_of_a_retry(world: World) -> None:
    old = await failed(world, key="k")

    with pytest.raises(IdempotencyKeyReused):
        await retry(world, old, idempotency_key="k")


async def test_the_new_command_has_as_much_time_as_the_old_one(world: World) -> None:
    old = (await world.create(deadline_in=60)).command_id
    await world.pass_time(100)
    assert (await world.status(old)).state is State.EXPIRED
    now = world.clock.now()

    again = await retry(world, old)
    named = await retry(world, old, deadline=now + timedelta(seconds=5))

    assert (await world.status(again.command_id)).deadline == now + timedelta(seconds=60)
    assert (await world.status(named.command_id)).deadline == now + timedelta(seconds=5)
    with pytest.raises(InvalidCommand):
        await retry(world, old, deadline=now)


async def test_an_overdue_command_that_no_sweep_has_seen_has_ended(world: World) -> None:
    old = (await world.create(deadline_in=60)).command_id
    world.clock.advance(61)

    assert (await retry(world, old)).state is State.PENDING


async def test_a_command_that_goes_on_is_not_run_again(world: World) -> None:
    waiting = (await world.create()).command_id
    awaited = (await world.upload(5)).command_id

    for command_id in (waiting, awaited):
        with pytest.raises(InvalidStateTransition):
            await retry(world, command_id)
    lease = await world.lease()
    with pytest.raises(InvalidStateTransition):
        await retry(world, lease.command_id)


async def test_a_signed_command_is_left_to_its_sender(world: World) -> None:
    old = await failed(world, signature="e30.e30.c2ln")

    with pytest.raises(Conflict, match="its sender has to sign"):
        await retry(world, old)


async def _never_uploaded(world: World) -> str:
    created = await world.upload(5)
    await world.commands.cancel(created.command_id)
    return created.command_id


async def _without_its_blob(world: World) -> str:
    old = await failed(world, params=LARGE)
    world.blobs.blobs.clear()
    return old


@pytest.mark.parametrize("make", [_never_uploaded, _without_its_blob])
async def test_without_params_there_is_nothing_to_run_again(
    world: World, make: Callable[[World], Awaitable[str]]
) -> None:
    old = await make(world)

    with pytest.raises(Conflict, match=r"never uploaded|no longer stored"):
        await retry(world, old)

    assert (await world.poll()).leases == []


async def test_a_broken_blob_store_is_not_taken_for_lost_params(world: World) -> None:
    old = await failed(world, params=LARGE)
    world.blobs.refuse["link"] = StorageOperationFailed("broken")

    with pytest.raises(StorageOperationFailed):
        await retry(world, old)


async def test_what_is_out_of_reach_does_not_exist(world: World) -> None:
    old = await failed(world)

    for within in (Reach(deployments=("d2",)), Reach(commands=("other",))):
        with pytest.raises(CommandNotFound):
            await retry(world, old, within=within)
    with pytest.raises(CommandNotFound):
        await retry(world, "cmd_unknown")


async def test_it_goes_to_the_target_of_before_if_that_is_still_there(world: World) -> None:
    targets = [daemon("east"), daemon("west")]
    await world.raw_store.put_deployment(
        Deployment(deployment_id="d1", targets=targets), world.clock.now()
    )
    created = await world.create(target="west")
    await world.respond(await world.lease(target=daemon("west")), error())

    again = await retry(world, created.command_id)
    assert (await world.status(again.command_id)).target == daemon("west")

    await world.commands.cancel(again.command_id)
    await world.raw_store.remove_target("d1", "west")
    with pytest.raises(CommandTargetNotFound):
        await retry(world, created.command_id)


async def test_a_command_of_the_implicit_target_follows_its_heir(world: World) -> None:
    old = await failed(world)
    await world.raw_store.put_deployment(
        Deployment(deployment_id="d1", targets=[daemon("east")]), world.clock.now()
    )

    again = await retry(world, old)

    assert (await world.status(again.command_id)).target == daemon("east")


async def test_a_retry_can_be_run_again_too(world: World) -> None:
    old = await failed(world)
    first = await retry(world, old)
    await world.respond(await world.lease())

    second = await retry(world, first.command_id)

    assert (await world.status(second.command_id)).retry_of == first.command_id


async def test_the_new_command_has_the_tags_of_the_old(world: World) -> None:
    old = (await world.create(tags={"env": "prod"})).command_id
    await world.commands.cancel(old)

    again = await retry(world, old)

    assert (await world.status(again.command_id)).tags == {"env": "prod"}
