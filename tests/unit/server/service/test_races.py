"""Many at once: one outcome, and each caller gets a defined answer."""

from __future__ import annotations

import asyncio

import pytest

from arc_protocol.errors import IdempotencyKeyReused, LeaseLost
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import ErrorResponse, StorageBody, SuccessResponse
from arc_server.ports.reach import EVERYTHING
from arc_server.ports.records import CommandFilter
from tests.support.service_world import World, error, inline_of, path_of, success


@pytest.mark.parametrize("size", [10, 5_000])
async def test_fifty_concurrent_creates_with_one_key_make_one_command(
    world: World, size: int
) -> None:
    answers = await asyncio.gather(*(world.create(params=bytes(size), key="k1") for _ in range(50)))

    assert len({answer.command_id for answer in answers}) == 1
    assert {answer.state for answer in answers} == {State.PENDING}
    assert len((await world.poll(count=100)).leases) == 1
    assert len(world.blobs.blobs) == (1 if size > 1_000 else 0)


async def test_concurrent_creates_with_one_key_and_different_params_have_one_winner(
    world: World,
) -> None:
    answers = await asyncio.gather(
        *(world.create(params=bytes([n]) * 5_000, key="k1") for n in range(40)),
        return_exceptions=True,
    )

    won = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert len(won) == 1
    assert sum(isinstance(answer, IdempotencyKeyReused) for answer in answers) == 39
    (lease,) = (await world.poll(count=100)).leases
    assert list(world.blobs.blobs) == [path_of(lease.envelope.params)]


async def test_concurrent_first_uses_of_a_deployment_register_it_once(world: World) -> None:
    await asyncio.gather(
        *(world.create("new") for _ in range(10)), *(world.poll("new") for _ in range(10))
    )

    listed = await world.search.list(
        CommandFilter(deployment_id="new"), cursor=None, limit=100, within=EVERYTHING
    )
    assert len(listed.commands) == 10


@pytest.mark.parametrize("size", [2, 5_000])
@pytest.mark.parametrize("names_lease", [True, False])
async def test_forty_concurrent_opposite_responses_have_one_outcome(
    world: World, size: int, names_lease: bool
) -> None:
    created = await world.create()
    lease = await world.lease()
    waiting = asyncio.ensure_future(world.status(created.command_id, wait=60))
    await world.quiet()

    await asyncio.gather(
        *(
            world.leases.submit_response(
                lease.command_id,
                success(bytes([n]) * size) if n % 2 else error(message=f"e{n}"),
                lease_id=lease.lease_id if names_lease else None,
            )
            for n in range(40)
        )
    )

    told = await asyncio.wait_for(waiting, 5)
    status = await world.status(created.command_id)
    assert told == status
    if status.state is State.SUCCEEDED:
        assert isinstance(status.response, SuccessResponse)
        body = status.response.response
        if isinstance(body, StorageBody):
            data = world.blobs.blobs[path_of(body)]
            assert list(world.blobs.blobs) == [path_of(body)]
        else:
            data = inline_of(body)
        assert len(data) == size
        assert len(set(data)) == 1
        assert data[0] % 2 == 1
    else:
        assert status.state is State.FAILED
        assert isinstance(status.response, ErrorResponse)
        assert not world.blobs.blobs


async def test_of_forty_concurrent_large_results_one_stands_and_no_other_is_left(
    world: World,
) -> None:
    created = await world.create()
    lease = await world.lease()

    await asyncio.gather(*(world.respond(lease, success(bytes([n]) * 5_000)) for n in range(40)))

    response = (await world.status(created.command_id)).response
    assert isinstance(response, SuccessResponse)
    path = path_of(response.response)
    assert list(world.blobs.blobs) == [path]
    assert world.blobs.sealed == {path}
    assert len(set(world.blobs.blobs[path])) == 1


async def test_a_hundred_polls_for_ten_commands_lease_each_once(world: World) -> None:
    ids = [(await world.create()).command_id for _ in range(10)]

    answers = await asyncio.gather(*(world.poll(count=3) for _ in range(100)))

    leased = [lease.command_id for answer in answers for lease in answer.leases]
    assert sorted(leased) == sorted(ids)


async def test_of_old_and_new_holders_only_the_new_one_counts(world: World) -> None:
    created = await world.create(max_attempts=10)
    leases = []
    for _ in range(5):
        leases.append(await world.lease())
        if len(leases) < 5:
            await world.leases.release(leases[-1].lease_id)

    answers = await asyncio.gather(
        *(world.respond(lease, success(lease.lease_id.encode())) for lease in leases[:4]),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [LeaseLost] * 4
    await world.respond(leases[4], success(b"newest"))

    status = await world.status(created.command_id)
    assert isinstance(status.response, SuccessResponse)
    assert inline_of(status.response.response) == b"newest"
