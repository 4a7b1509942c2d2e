"""Responses: whose counts, what is refused, and that no result is lost."""

from __future__ import annotations

import asyncio

import pytest

from arc_protocol.errors import (
    CommandNotFound,
    Forbidden,
    InvalidCommand,
    InvalidStateTransition,
    LeaseLost,
    StorageOperationFailed,
    StoreUnavailable,
)
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import ErrorResponse, InlineBody, StorageBody, SuccessResponse
from arc_server.ports.reach import EVERYTHING
from arc_server.service.limits import CommandLimits
from tests.support.reaches import only
from tests.support.service_fakes import Gate
from tests.support.service_world import SMALL_LIMITS, World, error, inline_of, path_of, success


async def test_a_stale_holder_is_told_that_it_lost_and_the_newer_ones_result_stands(
    world: World,
) -> None:
    (one,) = await world.create_many(1)
    stale = await world.lease(seconds=10)
    await world.pass_time(11)
    newer = await world.lease()

    for response in (
        success(b"stale"),
        success(bytes(5_000)),
        SuccessResponse(response=StorageBody(size=5, storage_put_used=True)),
        error(),
    ):
        with pytest.raises(LeaseLost):
            await world.respond(stale, response)
    assert not world.blobs.blobs
    await world.respond(newer, success(b"newer"))
    for response in (success(b"stale"), success(bytes(5_000)), error()):
        with pytest.raises(LeaseLost):  # also after the end
            await world.respond(stale, response)

    status = await world.status(one)
    assert status.attempt == 2
    assert isinstance(status.response, SuccessResponse)
    assert inline_of(status.response.response) == b"newer"


@pytest.mark.parametrize("swept", [True, False])
async def test_a_lapsed_lease_that_nobody_took_since_may_still_complete(
    world: World, swept: bool
) -> None:
    (one,) = await world.create_many(1)
    lease = await world.lease(seconds=10)
    if swept:
        await world.pass_time(11)
    else:
        world.clock.advance(11)

    await world.respond(lease, success(bytes(5_000)))

    assert (await world.status(one)).state is State.SUCCEEDED
    assert (await world.poll()).leases == []


async def test_the_path_of_an_upload_is_the_leases_own(world: World) -> None:
    await world.create_many(1)
    first = await world.lease(seconds=10)
    await world.pass_time(11)
    second = await world.lease()
    first_put = first.envelope.response_handling.storage_upload_request
    second_put = second.envelope.response_handling.storage_upload_request
    assert first_put.path != second_put.path
    uploaded = SuccessResponse(response=StorageBody(size=6_000, storage_put_used=True))
    await world.put(first_put, b"1" * 6_000)

    with pytest.raises(InvalidCommand):
        await world.respond(second, uploaded)
    await world.put(second_put, b"2" * 6_000)
    await world.respond(second, uploaded)

    response = (await world.status(second.command_id)).response
    assert isinstance(response, SuccessResponse)
    assert world.blobs.blobs[path_of(response.response)] == b"2" * 6_000
    assert second_put.path in world.blobs.sealed


async def test_an_upload_under_a_lapsed_lease_counts_while_nobody_took_it(world: World) -> None:
    (one,) = await world.create_many(1)
    lease = await world.lease(seconds=10)
    await world.put(lease.envelope.response_handling.storage_upload_request, b"1" * 6_000)
    await world.pass_time(11)
    assert (await world.status(one)).attempt == 2

    await world.respond(lease, SuccessResponse(response=StorageBody(size=6_000)))

    assert (await world.status(one)).state is State.SUCCEEDED


@pytest.mark.parametrize("size", [None, 6, 4])
async def test_a_result_said_to_be_uploaded_has_to_be_there(world: World, size: int | None) -> None:
    await world.create_many(1)
    lease = await world.lease()
    response = SuccessResponse(response=StorageBody(size=size, storage_put_used=True))

    with pytest.raises(InvalidCommand):
        await world.respond(lease, response)
    await world.put(lease.envelope.response_handling.storage_upload_request, b"12345")
    if size is not None:
        with pytest.raises(InvalidCommand):
            await world.respond(lease, response)
    assert (await world.status(lease.command_id)).state is State.DISPATCHED
    await world.respond(lease, SuccessResponse(response=StorageBody(size=5)))

    assert (await world.status(lease.command_id)).state is State.SUCCEEDED


@pytest.mark.parametrize("text", ["A", "AB==", "a-_="])
@pytest.mark.parametrize("is_large", [True, False])
async def test_a_result_that_is_no_base64_is_refused_and_may_be_sent_again(
    world: World, text: str, is_large: bool
) -> None:
    await world.create_many(1)
    lease = await world.lease()
    text = "AAAA" * 2_000 + text if is_large else text

    with pytest.raises(InvalidCommand) as refused:
        await world.respond(lease, SuccessResponse(response=InlineBody(inline_base64=text)))

    assert refused.value.context["field"] == "response.inlineBase64"
    await world.respond(lease)
    assert not world.blobs.blobs


async def test_responses_without_a_lease_are_judged_by_the_state_alone(world: World) -> None:
    (one,) = await world.create_many(1)
    with pytest.raises(InvalidStateTransition):
        await world.leases.submit_response(one, success())
    with pytest.raises(InvalidStateTransition):
        await world.leases.submit_response(one, success(bytes(5_000)))
    await world.lease()
    with pytest.raises(Forbidden):
        await world.leases.submit_response(one, success(b"bare"), within=only("d1", "tok_other"))

    await world.leases.submit_response(one, success(b"bare"))

    assert (await world.status(one)).state is State.SUCCEEDED
    assert not world.blobs.blobs


async def test_responses_to_unknown_and_foreign_commands_are_not_found(world: World) -> None:
    await world.create_many(1)
    lease = await world.lease()

    for command_id, within in (("cmd_none", EVERYTHING), (lease.command_id, only("d2"))):
        for response in (success(), success(bytes(5_000)), error()):
            with pytest.raises(CommandNotFound):
                await world.leases.submit_response(
                    command_id, response, lease_id=lease.lease_id, within=within
                )
    assert not world.blobs.blobs


@pytest.mark.parametrize("size", [2, 5_000])
async def test_a_second_response_changes_nothing_and_leaves_nothing(
    world: World, size: int
) -> None:
    (one,) = await world.create_many(1)
    lease = await world.lease()
    await world.respond(lease, success(b"1" * size))
    blobs = dict(world.blobs.blobs)

    await world.respond(lease, success(b"2" * size))
    await world.respond(lease, error())
    await world.leases.submit_response(one, error())

    assert world.blobs.blobs == blobs
    response = (await world.status(one)).response
    assert isinstance(response, SuccessResponse)
    body = response.response
    read = inline_of(body) if size == 2 else world.blobs.blobs[path_of(body)]
    assert read == b"1" * size


@pytest.mark.parametrize("size", [2, 5_000])
async def test_a_store_that_fails_at_any_call_loses_no_result(world: World, size: int) -> None:
    await world.create_many(1)
    lease = await world.lease()
    for number in range(1, 10):
        world.store.calls.clear()
        world.store.fail_at = number
        try:
            await world.respond(lease, success(b"1" * size))
        except StoreUnavailable:
            continue
        break
    world.store.fail_at = None

    status = await world.status(lease.command_id)
    assert isinstance(status.response, SuccessResponse)
    body = status.response.response
    read = inline_of(body) if size == 2 else world.blobs.blobs[path_of(body)]
    assert read == b"1" * size


async def test_a_result_that_is_taken_is_acknowledged_though_it_cannot_be_sealed(
    world: World,
) -> None:
    await world.create_many(1)
    lease = await world.lease()
    world.blobs.refuse["seal"] = StorageOperationFailed("no disk")

    await world.respond(lease, success(bytes(5_000)))

    assert (await world.status(lease.command_id)).state is State.SUCCEEDED


@pytest.mark.parametrize("size", [2, 5_000])
async def test_a_result_after_the_deadline_is_dropped_without_a_trace(
    world: World, size: int
) -> None:
    created_one = await world.create(deadline_in=10)
    lease = await world.lease()
    gate = world.store.gates["complete"] = Gate()
    responding = asyncio.ensure_future(world.respond(lease, success(bytes(size))))
    await gate.arrived.wait()
    world.clock.advance(11)
    world.store.gates.clear()
    gate.open()
    await responding  # it came in time, as far as it knew

    late = await world.status(created_one.command_id)

    assert late.state in {State.EXPIRED, State.SUCCEEDED}
    assert (late.response is None) == (late.state is State.EXPIRED)
    assert bool(world.blobs.blobs) == (size > 1_000 and late.state is State.SUCCEEDED)


async def test_a_repeat_is_answered_though_its_body_is_nowhere(world: World) -> None:
    await world.create_many(1)
    lease = await world.lease()
    await world.respond(lease)

    await world.respond(lease, SuccessResponse(response=StorageBody(size=5)))
    await world.respond(lease, SuccessResponse(response=InlineBody(inline_base64="A" * 9_999)))

    assert (await world.status(lease.command_id)).state is State.SUCCEEDED


async def test_huge_error_texts_are_clipped(world: World) -> None:
    (one,) = await world.create_many(1)
    lease = await world.lease()

    await world.respond(
        lease, ErrorResponse(code="C" * 9_999, message="m" * 9_999, details="d" * 9_999)
    )

    response = (await world.status(one)).response
    assert isinstance(response, ErrorResponse)
    for text in (response.code, response.message, response.details or ""):
        assert SMALL_LIMITS.inline_bytes < len(text) < SMALL_LIMITS.inline_bytes + 40


async def test_large_bodies_are_decoded_off_the_loop_and_arrive_whole(world_of: object) -> None:
    world: World = world_of(limits=CommandLimits())  # type: ignore[operator]
    data = bytes(range(256)) * 8_192
    await world.create(params=data)

    lease = await world.lease()
    await world.respond(lease, success(data))

    assert world.blobs.blobs[path_of(lease.envelope.params)] == data
    response = (await world.status(lease.command_id)).response
    assert isinstance(response, SuccessResponse)
    assert world.blobs.blobs[path_of(response.response)] == data
