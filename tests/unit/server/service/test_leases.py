"""Leasing: who gets what, for how long, in which order, and what is never lost on the way."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import Any

import pytest
from msgspec import structs

from arc_protocol import lifecycle
from arc_protocol.errors import (
    CommandNotFound,
    Forbidden,
    InvalidCommand,
    InvalidStateTransition,
    LeaseLost,
    LeaseNotFound,
    StorageOperationFailed,
    StoreUnavailable,
)
from arc_protocol.messages.base import (
    MAX_WAIT_SECONDS,
    PROTOCOL,
    CommandTarget,
    ResourceType,
    State,
)
from arc_protocol.messages.bodies import ErrorResponse, InlineBody, StorageBody, SuccessResponse
from arc_protocol.messages.leases import LeaseInfo, RenewRequest
from arc_server.ports.reach import EVERYTHING
from arc_server.service.limits import CommandLimits
from arc_server.service.waits import Wait
from tests.support.reaches import only
from tests.support.service_fakes import Gate
from tests.support.service_world import (
    BASE,
    SMALL_LIMITS,
    World,
    daemon,
    error,
    inline_of,
    path_of,
    success,
)
from tests.support.waiting import until

GONE = ConnectionResetError("the client has gone")
LEGACY = "alien-agent/1.2.6"


async def created(world: World, count: int, **more: object) -> list[str]:
    return [(await world.create(**more)).command_id for _ in range(count)]  # type: ignore[arg-type]


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
    ids = await created(world, 5)

    first = (await world.poll(count=2)).leases
    rest = (await world.poll(count=10)).leases

    assert [lease.command_id for lease in first + rest] == ids
    assert len({lease.lease_id for lease in first + rest}) == 5


async def test_a_redelivered_command_keeps_its_place(world: World) -> None:
    ids = await created(world, 3)
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
    await created(world, 4)

    assert len((await world.poll(count=2**70)).leases) == 3


@pytest.mark.parametrize(
    ("asked", "granted"),
    [(3_660, 3_660), (7_260, 7_260), (86_400, 86_400), (86_401, 86_400), (2**70, 86_400)],
)
async def test_a_longer_lease_than_may_be_is_granted_as_the_longest(
    world: World, asked: int, granted: int
) -> None:
    await created(world, 1)

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
    await created(world, 40)

    assert len((await world.poll(count=30)).leases) == 30
    assert len((await world.poll()).leases) == 1
    assert len((await world.poll(count=1_000)).leases) == 9


@pytest.mark.parametrize(
    ("asked", "granted"), [(None, 330), (1, 330), (330, 330), (331, 331), (3_600, 3_600)]
)
async def test_a_1x_agent_gets_one_long_lease_whatever_it_asks_for(
    world: World, asked: int | None, granted: int
) -> None:
    await created(world, 3)

    (lease,) = (await world.poll(count=10, seconds=asked, user_agent=LEGACY)).leases

    assert lease.lease_seconds == granted
    assert lease.lease_expires_at == world.clock.now() + timedelta(seconds=granted)


async def test_leases_default_to_a_minute(world: World) -> None:
    await created(world, 1)

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
    ids = await created(world, 5, max_attempts=2)
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
    (one,) = await created(world, 1, max_attempts=3)
    world.links.broken = {one}

    polling = asyncio.ensure_future(world.poll(wait=0.05))
    status = await asyncio.wait_for(world.status(one, wait=30), 10)

    assert status.state is State.FAILED
    assert isinstance(status.response, ErrorResponse)
    assert status.response.code == lifecycle.MAX_ATTEMPTS_EXCEEDED
    assert (await polling).leases == []


# waiting


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
    (one,) = await created(world, 1)

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
    (one,) = await created(world, 1)
    hold = Wait()
    hold.end(GONE)

    with pytest.raises(ConnectionResetError):
        await world.poll(wait=60, hold=hold)

    assert world.store.calls.count("lease") == 0
    assert (await world.status(one)).state is State.PENDING


async def test_a_client_gone_during_the_look_returns_its_leases_at_no_cost(world: World) -> None:
    ids = await created(world, 3, max_attempts=1)
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
    ids = await created(world, 3, max_attempts=1)
    leases = (await world.poll(count=3)).leases
    await world.respond(leases[0])

    await world.leases.return_undelivered([*(one.lease_id for one in leases), "lease_none"])

    again = (await world.poll(count=3)).leases
    assert [lease.command_id for lease in again] == ids[1:]
    assert {lease.attempt for lease in again} == {1}


async def test_a_lease_that_cannot_be_returned_now_lapses(world: World) -> None:
    (one,) = await created(world, 1)
    lease = await world.lease()
    world.store.away = {"release"}

    await world.leases.return_undelivered([lease.lease_id])

    world.store.away = set()
    await world.pass_time(61)
    assert (await world.lease()).command_id == one


# cancels reach their holders


async def test_a_cancel_reaches_a_waiting_holder_at_once(world: World) -> None:
    (one,) = await created(world, 1)
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
    (one,) = await created(world, 1)
    lease = await world.lease(agent="a1")
    await world.commands.cancel(one)

    assert (await world.poll(agent="a2")).cancelled is None
    assert (await world.poll("d2", agent="a1")).cancelled is None
    assert (await world.poll(agent="a1")).cancelled == [lease.lease_id]
    assert (await world.poll(agent="a1")).cancelled is None


# renew


async def test_a_renewed_lease_ends_later(world: World) -> None:
    (one,) = await created(world, 1)
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
    await created(world, 3)
    done, lost, live = (await world.poll(count=3)).leases
    await world.respond(done)
    await world.leases.release(lost.lease_id)

    answer = await world.renew(done.lease_id, lost.lease_id, live.lease_id, "lease_none")

    assert [renewed.lease_id for renewed in answer.renewed] == [live.lease_id]
    assert sorted(answer.lost) == sorted([done.lease_id, lost.lease_id, "lease_none"])


async def test_a_lapsed_lease_that_nobody_swept_yet_is_renewed(world: World) -> None:
    await created(world, 1)
    lease = await world.lease(seconds=10)
    world.clock.advance(20)

    answer = await world.renew(lease.lease_id)
    await world.sweeper.tick()

    assert answer.lost == []
    await world.respond(lease)


async def test_leases_of_other_deployments_are_lost_to_a_bound_caller(world: World) -> None:
    await created(world, 1)
    lease = await world.lease()
    answer = await world.leases.renew(RenewRequest(lease_ids=[lease.lease_id]), within=only("d2"))

    assert answer.lost == [lease.lease_id]
    with pytest.raises(LeaseNotFound):
        await world.leases.release(lease.lease_id, within=only("d2"))
    await world.leases.release(lease.lease_id, within=only("d1"))


# release


async def test_a_release_costs_an_attempt_and_a_drain_does_not(world: World) -> None:
    (one,) = await created(world, 1, max_attempts=2)
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
    await created(world, 2)
    done, released = (await world.poll(count=2)).leases
    await world.respond(done)
    await world.leases.release(released.lease_id)

    for lease_id in (done.lease_id, released.lease_id, "lease_none"):
        with pytest.raises(LeaseNotFound):
            await world.leases.release(lease_id)


# responses


async def test_a_stale_holder_is_told_that_it_lost_and_the_newer_ones_result_stands(
    world: World,
) -> None:
    (one,) = await created(world, 1)
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
    (one,) = await created(world, 1)
    lease = await world.lease(seconds=10)
    if swept:
        await world.pass_time(11)
    else:
        world.clock.advance(11)

    await world.respond(lease, success(bytes(5_000)))

    assert (await world.status(one)).state is State.SUCCEEDED
    assert (await world.poll()).leases == []


async def test_the_path_of_an_upload_is_the_leases_own(world: World) -> None:
    await created(world, 1)
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
    (one,) = await created(world, 1)
    lease = await world.lease(seconds=10)
    await world.put(lease.envelope.response_handling.storage_upload_request, b"1" * 6_000)
    await world.pass_time(11)
    assert (await world.status(one)).attempt == 2

    await world.respond(lease, SuccessResponse(response=StorageBody(size=6_000)))

    assert (await world.status(one)).state is State.SUCCEEDED


@pytest.mark.parametrize("size", [None, 6, 4])
async def test_a_result_said_to_be_uploaded_has_to_be_there(world: World, size: int | None) -> None:
    await created(world, 1)
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
    await created(world, 1)
    lease = await world.lease()
    text = "AAAA" * 2_000 + text if is_large else text

    with pytest.raises(InvalidCommand) as refused:
        await world.respond(lease, SuccessResponse(response=InlineBody(inline_base64=text)))

    assert refused.value.context["field"] == "response.inlineBase64"
    await world.respond(lease)
    assert not world.blobs.blobs


async def test_responses_without_a_lease_are_judged_by_the_state_alone(world: World) -> None:
    (one,) = await created(world, 1)
    with pytest.raises(InvalidStateTransition):
        await world.leases.submit_response(one, success())
    with pytest.raises(InvalidStateTransition):
        await world.leases.submit_response(one, success(bytes(5_000)))
    await world.lease()

    await world.leases.submit_response(one, success(b"bare"), within=only("d1"))

    assert (await world.status(one)).state is State.SUCCEEDED
    assert not world.blobs.blobs


async def test_responses_to_unknown_and_foreign_commands_are_not_found(world: World) -> None:
    await created(world, 1)
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
    (one,) = await created(world, 1)
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
    await created(world, 1)
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
    await created(world, 1)
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
    await created(world, 1)
    lease = await world.lease()
    await world.respond(lease)

    await world.respond(lease, SuccessResponse(response=StorageBody(size=5)))
    await world.respond(lease, SuccessResponse(response=InlineBody(inline_base64="A" * 9_999)))

    assert (await world.status(lease.command_id)).state is State.SUCCEEDED


async def test_huge_error_texts_are_clipped(world: World) -> None:
    (one,) = await created(world, 1)
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
