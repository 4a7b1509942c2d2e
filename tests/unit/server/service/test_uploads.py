"""Params that come by upload, and what happens when anything fails on the way."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator

import pytest

from arc_protocol.errors import (
    ArcError,
    CommandNotFound,
    InvalidCommand,
    InvalidStateTransition,
    NotFound,
    StorageOperationFailed,
    StoreUnavailable,
)
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import PresignedRequest
from arc_protocol.messages.commands import CreateCommandResponse
from arc_server.ports.reach import EVERYTHING
from tests.support.reaches import only
from tests.support.service_world import World, inline_of, path_of

SIZES = (0, 5, 1_000, 1_001, 5_000)


def put_of(created: CreateCommandResponse) -> PresignedRequest:
    assert created.storage_upload is not None
    return created.storage_upload.put_request


async def uploaded(world: World, data: bytes, size: int | None = None) -> str:
    """A command whose params are there, but not yet said to be."""
    created = await world.upload(size)
    await world.put(put_of(created), data)
    return created.command_id


@pytest.mark.parametrize("size", SIZES)
async def test_an_uploaded_body_reaches_the_agent_inline_if_it_fits(
    world: World, size: int
) -> None:
    data = bytes(size)
    command_id = await uploaded(world, data, size)

    answer = await world.commands.upload_complete(command_id, size)

    assert answer.state is State.PENDING
    params = (await world.lease()).envelope.params
    if size <= world.limits.inline_bytes:
        assert inline_of(params) == data
        assert not world.blobs.blobs
    else:
        assert world.blobs.blobs == {path_of(params): data}
        assert world.blobs.sealed == {path_of(params)}


async def test_nothing_uploaded_is_refused_and_the_state_stays(world: World) -> None:
    created = await world.upload(5)

    with pytest.raises(InvalidCommand) as refused:
        await world.commands.upload_complete(created.command_id, 5)

    assert refused.value.context["field"] == "size"
    assert (await world.status(created.command_id)).state is State.PENDING_UPLOAD
    await world.put(put_of(created), b"12345")
    assert (await world.commands.upload_complete(created.command_id, 5)).state is State.PENDING


@pytest.mark.parametrize(
    ("uploaded_bytes", "said"), [(5, 4), (5, 6), (5, 0), (0, 1), (5_000, 4_999)]
)
async def test_another_size_than_was_uploaded_is_refused_and_the_state_stays(
    world: World, uploaded_bytes: int, said: int
) -> None:
    command_id = await uploaded(world, bytes(uploaded_bytes))

    with pytest.raises(InvalidCommand):
        await world.commands.upload_complete(command_id, said)

    assert (await world.status(command_id)).state is State.PENDING_UPLOAD
    await world.commands.upload_complete(command_id, uploaded_bytes)
    assert (await world.status(command_id)).state is State.PENDING


@pytest.mark.parametrize("becomes", [b"", b"1234", b"123456", bytes(3_000_000), None])
async def test_a_body_replaced_while_it_is_read_is_refused(
    world: World, becomes: bytes | None
) -> None:
    command_id = await uploaded(world, b"12345")
    size = world.blobs.size

    async def size_then_replace(path: str) -> int | None:
        found = await size(path)
        if becomes is None:
            del world.blobs.blobs[path]
        else:
            world.blobs.blobs[path] = becomes
        return found

    world.blobs.size = size_then_replace  # type: ignore[method-assign]

    with pytest.raises(InvalidCommand):
        await world.commands.upload_complete(command_id, 5)

    assert (await world.status(command_id)).state is State.PENDING_UPLOAD


async def test_a_second_upload_complete_is_no_transition(world: World) -> None:
    command_id = await uploaded(world, b"12345")
    await world.commands.upload_complete(command_id, 5)

    with pytest.raises(InvalidStateTransition):
        await world.commands.upload_complete(command_id, 5)

    assert (await world.status(command_id)).state is State.PENDING


async def test_concurrent_upload_completes_make_the_command_ready_once(world: World) -> None:
    command_id = await uploaded(world, bytes(5_000))

    answers = await asyncio.gather(
        *(world.commands.upload_complete(command_id, 5_000) for _ in range(10)),
        return_exceptions=True,
    )

    assert sum(not isinstance(answer, BaseException) for answer in answers) == 1
    assert sum(isinstance(answer, InvalidStateTransition) for answer in answers) == 9
    assert len((await world.poll(count=10)).leases) == 1


async def test_a_large_body_in_the_place_of_a_small_one_is_not_held_in_memory(
    world: World,
) -> None:
    command_id = await uploaded(world, b"12345")
    megabyte = bytes(1 << 20)

    async def read(path: str) -> AsyncIterator[bytes]:
        for _ in range(64):
            yield megabyte

    world.blobs.read = read  # type: ignore[method-assign]
    tracemalloc.start()
    with pytest.raises(InvalidCommand):
        await world.commands.upload_complete(command_id, 5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 8 << 20


async def test_what_has_ended_awaits_no_upload(world: World) -> None:
    created = await world.upload(5)
    await world.commands.cancel(created.command_id)

    with pytest.raises(InvalidStateTransition):
        await world.commands.upload_complete(created.command_id, 5)


async def test_unknown_and_foreign_commands_are_not_found(world: World) -> None:
    command_id = await uploaded(world, b"12345")

    with pytest.raises(CommandNotFound):
        await world.commands.upload_complete("cmd_none", 5)
    with pytest.raises(CommandNotFound):
        await world.commands.upload_complete(command_id, 5, within=only("d2"))
    await world.commands.upload_complete(command_id, 5, within=only("d1"))


async def test_a_command_without_upload_awaits_none(world: World) -> None:
    created = await world.create()

    with pytest.raises(InvalidStateTransition):
        await world.commands.upload_complete(created.command_id, 2)


@pytest.mark.parametrize("swept", [True, False])
async def test_an_upload_after_the_deadline_is_too_late_and_its_waiter_hears_of_it(
    world: World, swept: bool
) -> None:
    created = await world.upload(5, deadline_in=10)
    await world.put(put_of(created), b"12345")
    waiting = asyncio.ensure_future(world.status(created.command_id, wait=30))
    await world.quiet()
    world.clock.advance(11)
    if swept:
        await world.sweeper.tick()

    with pytest.raises(InvalidStateTransition):
        await world.commands.upload_complete(created.command_id, 5)

    assert (await asyncio.wait_for(waiting, 5)).state is State.EXPIRED


async def test_it_becomes_ready_behind_what_was_ready_before(world: World) -> None:
    awaited = await uploaded(world, b"12345")
    created = await world.create()
    await world.commands.upload_complete(awaited, 5)

    leases = (await world.poll(count=2)).leases

    assert [lease.command_id for lease in leases] == [created.command_id, awaited]


async def test_a_waiting_agent_gets_it_at_once(world: World) -> None:
    command_id = await uploaded(world, b"12345")
    polling = asyncio.ensure_future(world.poll(wait=30))
    await world.quiet()

    await world.commands.upload_complete(command_id, 5)

    (lease,) = (await asyncio.wait_for(polling, 5)).leases
    assert lease.command_id == command_id


@pytest.mark.parametrize("size", [5, 5_000])
async def test_a_store_that_fails_at_any_call_loses_nothing(world: World, size: int) -> None:
    command_id = await uploaded(world, bytes(size))
    failures = 0
    for number in range(1, 10):
        world.store.calls.clear()
        world.store.fail_at = number
        try:
            await world.commands.upload_complete(command_id, size)
        except StoreUnavailable:
            failures += 1
        else:
            break
        assert len(world.blobs.blobs) == 1
        assert not world.blobs.sealed
    world.store.fail_at = None

    assert failures == 2
    params = (await world.lease()).envelope.params
    read = inline_of(params) if size == 5 else world.blobs.blobs[path_of(params)]
    assert read == bytes(size)


@pytest.mark.parametrize("operation", ["size", "read"])
async def test_a_blob_store_that_fails_before_the_change_leaves_the_upload_to_be_completed(
    world: World, operation: str
) -> None:
    command_id = await uploaded(world, b"12345")
    world.blobs.refuse[operation] = StorageOperationFailed("no disk")

    with pytest.raises(StorageOperationFailed):
        await world.commands.upload_complete(command_id, 5)

    assert (await world.status(command_id)).state is State.PENDING_UPLOAD
    world.blobs.refuse.clear()
    await world.commands.upload_complete(command_id, 5)
    assert inline_of((await world.lease()).envelope.params) == b"12345"


@pytest.mark.parametrize(("operation", "size"), [("delete", 5), ("seal", 5_000)])
async def test_a_blob_store_that_fails_after_the_change_takes_nothing_back(
    world: World, operation: str, size: int
) -> None:
    command_id = await uploaded(world, bytes(size))
    world.blobs.refuse[operation] = StorageOperationFailed("no disk")

    answer = await world.commands.upload_complete(command_id, size)

    assert answer.state is State.PENDING
    params = (await world.lease()).envelope.params
    read = inline_of(params) if size == 5 else world.blobs.blobs[path_of(params)]
    assert read == bytes(size)


async def test_a_sealed_upload_cannot_be_replaced(world: World) -> None:
    created = await world.upload()
    await world.put(put_of(created), bytes(5_000))
    await world.commands.upload_complete(created.command_id, 5_000)

    with pytest.raises(ArcError):
        await world.put(put_of(created), b"x" * 5_000)

    assert (
        await world.commands.payload(created.command_id, base_url="b", within=EVERYTHING)
    ).params
    with pytest.raises(NotFound):
        await world.commands.payload(created.command_id, base_url="b", within=only("d2"))
