"""Leasing: who gets what, for how long, in which order, and what is never lost on the way."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import Any

import pytest
from msgspec import structs

from arc_protocol import lifecycle
from arc_protocol.errors import Forbidden, InvalidCommand, LeaseNotFound
from arc_protocol.messages.base import (
    MAX_WAIT_SECONDS,
    PROTOCOL,
    CommandTarget,
    ResourceType,
    State,
)
from arc_protocol.messages.bodies import ErrorResponse
from arc_protocol.messages.leases import RenewRequest
from tests.support.reaches import only
from tests.support.service_world import BASE, SMALL_LIMITS, World, daemon

LEGACY = "alien-agent/1.2.6"


async def test_an_envelope_holds_all_that_its_receiver_needs(world: World) -> None:
    command = await world.create("d1", b'{"a":1}', command="run.it", deadline_in=500)

    lease = await world.lease(seconds=90)

    now = world.clock.now()
    envelope = lease.envelope
    assert lease.command_id == envelope.command_id == command.command_id
    assert lease.attempt == envelope.attempt == 1
    assert lease.lease_seconds == 90
    assert lease.lease_expires_at == now + timedelta(seconds=90)
    assert envelope.protocol == PROTOCOL
    assert envelope.deployment_id == "d1"
    assert envelope.command == "run.it"
    assert envelope.target == daemon("default")
    assert envelope.deadline == now + timedelta(seconds=500)
    handling = envelope.response_handling
    assert handling.max_inline_bytes == world.limits.inline_bytes
    assert handling.submit_response_url.startswith(
        f"{BASE}/commands/{command.command_id}/response?"
    )
    assert f"lease={lease.lease_id}" in handling.submit_response_url
    upload = handling.storage_upload_request
    assert upload.operation == "put"
    assert lease.lease_id in upload.path
    assert upload.expiration == now + timedelta(seconds=world.limits.response_url_seconds)


async def test_first_ready_is_first_leased(world: World) -> None:
    ids = await world.create_many(5)

    first = (await world.poll(count=2)).leases
    rest = (await world.poll(count=10)).leases

    assert [lease.command_id for lease in first + rest] == ids
    assert len({lease.lease_id for lease in first + rest}) == 5


async def test_a_redelivered_command_keeps_its_place(world: World) -> None:
    ids = await world.create_many(3)
    first = await world.lease()

    await world.leases.release(first.lease_id)

    again = (await world.poll(count=3)).leases
    assert [lease.command_id for lease in again] == ids
    assert [lease.attempt for lease in again] == [2, 1, 1]


async def test_without_any_command_the_answer_is_empty(world: World) -> None:
    assert (await world.poll()).leases == []
    assert (await world.poll(target=daemon("t"))).leases == []


@pytest.mark.parametrize("count", [0, -1, -(2**70)])
async def test_fewer_leases_than_one_are_refused(world: World, count: int) -> None:
    with pytest.raises(InvalidCommand) as refused:
        await world.poll(count=count)

    assert refused.value.context["field"] == "maxLeases"


async def test_a_request_for_more_leases_than_may_be_gets_the_most(store: Any) -> None:
    world = World(store, limits=structs.replace(SMALL_LIMITS, max_leases=3))
    await world.create_many(4)

    assert len((await world.poll(count=2**70)).leases) == 3


@pytest.mark.parametrize(
    ("asked", "granted"),
    [(3_660, 3_660), (7_260, 7_260), (86_400, 86_400), (86_401, 86_400), (2**70, 86_400)],
)
async def test_a_longer_lease_than_may_be_is_granted_as_the_longest(
    world: World, asked: int, granted: int
) -> None:
    await world.create_many(1)

    lease = await world.lease(seconds=asked)

    assert lease.lease_seconds == granted
    assert lease.lease_expires_at == world.clock.now() + timedelta(seconds=granted)
    (renewed,) = (await world.renew(lease.lease_id, seconds=asked)).renewed
    assert renewed.lease_seconds == granted


@pytest.mark.parametrize("seconds", [0, -1])
async def test_shorter_leases_than_a_second_are_refused(world: World, seconds: int) -> None:
    with pytest.raises(InvalidCommand) as refused:
        await world.poll(seconds=seconds)
    with pytest.raises(InvalidCommand):
        await world.renew("lease_1", seconds=seconds)

    assert refused.value.context["field"] == "leaseSeconds"


@pytest.mark.parametrize("wait", [-0.1, MAX_WAIT_SECONDS + 0.1, math.nan, math.inf])
async def test_longer_or_shorter_waits_than_may_be_are_refused(world: World, wait: float) -> None:
    with pytest.raises(InvalidCommand) as refused:
        await world.poll(wait=wait)

    assert refused.value.context["field"] == "waitSeconds"
    assert world.announcements.work.count == 0


async def test_a_request_gets_as_many_as_it_asks_for(world: World) -> None:
    await world.create_many(40)

    assert len((await world.poll(count=30)).leases) == 30
    assert len((await world.poll()).leases) == 1
    assert len((await world.poll(count=1_000)).leases) == 9


@pytest.mark.parametrize(
    ("asked", "granted"), [(None, 330), (1, 330), (330, 330), (331, 331), (3_600, 3_600)]
)
async def test_a_1x_agent_gets_one_long_lease_whatever_it_asks_for(
    world: World, asked: int | None, granted: int
) -> None:
    await world.create_many(3)

    (lease,) = (await world.poll(count=10, seconds=asked, user_agent=LEGACY)).leases

    assert lease.lease_seconds == granted
    assert lease.lease_expires_at == world.clock.now() + timedelta(seconds=granted)


async def test_leases_default_to_a_minute(world: World) -> None:
    await world.create_many(1)

    assert (await world.lease()).lease_seconds == 60


async def test_a_resource_type_that_does_not_match_gets_nothing_and_the_log_says_so(
    world: World, logged: list[Any]
) -> None:
    await world.create(target="t1")
    worker = CommandTarget(resource_id="t1", resource_type=ResourceType.WORKER)

    assert (await world.poll(target=worker)).leases == []

    (event,) = [event for event in logged if event["event"] == "lease.resource_type_mismatch"]
    assert (event["target"], event["resource_type"]) == ("t1", "worker")
    assert len((await world.poll(target=daemon("t1"))).leases) == 1


@pytest.mark.parametrize("is_deployment_known", [True, False])
async def test_a_target_that_is_not_registered_gets_nothing_and_the_log_says_so(
    world: World, logged: list[Any], is_deployment_known: bool
) -> None:
    if is_deployment_known:
        await world.poll(target=daemon("t1"))

    assert (await world.poll(target=daemon("t2"), within=only("d1"))).leases == []

    (event,) = [event for event in logged if event["event"] == "lease.target_unknown"]
    assert (event["deployment_id"], event["target"]) == ("d1", "t2")


async def test_targets_get_their_own(world: World) -> None:
    await world.poll(target=daemon("t2"))
    await world.poll(target=daemon("t1"))
    one = await world.create(target="t1")
    two = await world.create(target="t2")

    assert (await world.lease(target=daemon("t2"))).command_id == two.command_id
    assert (await world.poll(target=daemon("t2"))).leases == []
    assert (await world.lease(target=daemon("t1"))).command_id == one.command_id


async def test_deployments_get_their_own(world: World) -> None:
    await world.create("d1")

    assert (await world.poll("d2")).leases == []
    with pytest.raises(Forbidden):
        await world.poll("d1", within=only("d2"))
    assert len((await world.poll("d1", within=only("d1"))).leases) == 1


async def test_overdue_commands_on_the_way_are_not_handed_out(world: World) -> None:
    overdue = [(await world.create(deadline_in=10)).command_id for _ in range(3)]
    good = await world.create()
    world.clock.advance(10)

    assert (await world.lease()).command_id == good.command_id

    assert {(await world.status(one)).state for one in overdue} == {State.EXPIRED}


# one that cannot be built


async def test_one_envelope_that_cannot_be_built_does_not_lose_the_others(world: World) -> None:
    ids = await world.create_many(5, max_attempts=2)
    world.links.broken = {ids[1], ids[3]}

    leases = (await world.poll(count=5)).leases

    assert [lease.command_id for lease in leases] == [ids[0], ids[2], ids[4]]
    for one in (ids[1], ids[3]):
        status = await world.status(one)
        assert status.state is State.PENDING
        assert status.attempt == 2
    world.links.broken = set()
    assert [lease.command_id for lease in (await world.poll(count=5)).leases] == [ids[1], ids[3]]


async def test_one_that_can_never_be_built_ends_by_its_attempts(world: World) -> None:
    (one,) = await world.create_many(1, max_attempts=3)
    world.links.broken = {one}

    polling = asyncio.ensure_future(world.poll(wait=0.05))
    status = await asyncio.wait_for(world.status(one, wait=30), 10)

    assert status.state is State.FAILED
    assert isinstance(status.response, ErrorResponse)
    assert status.response.code == lifecycle.MAX_ATTEMPTS_EXCEEDED
    assert (await polling).leases == []


# renew


async def test_a_renewed_lease_ends_later(world: World) -> None:
    (one,) = await world.create_many(1)
    lease = await world.lease(seconds=60)
    for _ in range(5):
        await world.pass_time(50)
        answer = await world.renew(lease.lease_id, seconds=60)
        assert [renewed.lease_id for renewed in answer.renewed] == [lease.lease_id]
        assert answer.renewed[0].lease_seconds == 60
        assert answer.renewed[0].lease_expires_at == world.clock.now() + timedelta(seconds=60)
        assert answer.lost == answer.cancelled == []

    await world.respond(lease)

    status = await world.status(one)
    assert status.state is State.SUCCEEDED
    assert status.attempt == 1


async def test_a_renewal_says_which_leases_are_lost(world: World) -> None:
    await world.create_many(3)
    done, lost, live = (await world.poll(count=3)).leases
    await world.respond(done)
    await world.leases.release(lost.lease_id)

    answer = await world.renew(done.lease_id, lost.lease_id, live.lease_id, "lease_none")

    assert [renewed.lease_id for renewed in answer.renewed] == [live.lease_id]
    assert sorted(answer.lost) == sorted([done.lease_id, lost.lease_id, "lease_none"])


async def test_a_lapsed_lease_that_nobody_swept_yet_is_renewed(world: World) -> None:
    await world.create_many(1)
    lease = await world.lease(seconds=10)
    world.clock.advance(20)

    answer = await world.renew(lease.lease_id)
    await world.sweeper.tick()

    assert answer.lost == []
    await world.respond(lease)


async def test_leases_of_other_deployments_are_lost_to_a_bound_caller(world: World) -> None:
    await world.create_many(1)
    lease = await world.lease()
    answer = await world.leases.renew(RenewRequest(lease_ids=[lease.lease_id]), within=only("d2"))

    assert answer.lost == [lease.lease_id]
    with pytest.raises(LeaseNotFound):
        await world.leases.release(lease.lease_id, within=only("d2"))
    await world.leases.release(lease.lease_id, within=only("d1"))


# release


async def test_a_release_costs_an_attempt_and_a_drain_does_not(world: World) -> None:
    (one,) = await world.create_many(1, max_attempts=2)
    for _ in range(5):
        await world.leases.release((await world.lease()).lease_id, costs_attempt=False)
    assert (await world.status(one)).attempt == 1

    await world.leases.release((await world.lease()).lease_id)
    assert (await world.status(one)).attempt == 2
    await world.leases.release((await world.lease()).lease_id, costs_attempt=False)
    await world.leases.release((await world.lease()).lease_id)

    status = await world.status(one)
    assert status.state is State.FAILED
    assert status.attempt == 2
    assert isinstance(status.response, ErrorResponse)
    assert status.response.code == lifecycle.MAX_ATTEMPTS_EXCEEDED


async def test_what_is_no_live_lease_cannot_be_released(world: World) -> None:
    await world.create_many(2)
    done, released = (await world.poll(count=2)).leases
    await world.respond(done)
    await world.leases.release(released.lease_id)

    for lease_id in (done.lease_id, released.lease_id, "lease_none"):
        with pytest.raises(LeaseNotFound):
            await world.leases.release(lease_id)
