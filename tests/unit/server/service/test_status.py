"""Status, with and without waiting; lists, payloads, cancel."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

import pytest

from arc_protocol import lifecycle
from arc_protocol.errors import (
    CommandNotFound,
    Forbidden,
    InvalidCommand,
    InvalidStateTransition,
    StoreUnavailable,
)
from arc_protocol.messages.base import MAX_WAIT_SECONDS, State
from arc_protocol.messages.bodies import ErrorResponse, InlineBody, StorageBody, SuccessResponse
from arc_protocol.messages.commands import Payload
from arc_server.ports.reach import EVERYTHING
from arc_server.ports.records import CommandFilter
from arc_server.service.waits import Wait
from tests.support.clocks import START
from tests.support.reaches import only
from tests.support.service_fakes import Gate
from tests.support.service_world import BASE, World, daemon, error, inline_of, path_of, success


async def test_a_status_says_where_a_command_stands(world: World) -> None:
    created = await world.create(deadline_in=100, max_attempts=3, command="reports.generate")
    world.clock.advance(1)
    lease = await world.lease()
    dispatched = await world.status(created.command_id)
    world.clock.advance(1)
    await world.respond(lease, success(b"42"))

    status = await world.status(created.command_id)

    assert dispatched.state is State.DISPATCHED
    assert dispatched.response is None
    assert dispatched.completed_at is None
    assert status.state is State.SUCCEEDED
    assert status.attempt == 1
    assert status.max_attempts == 3
    assert status.target == daemon("default")
    assert status.deployment_id == "d1"
    assert status.command == "reports.generate"
    assert status.created_at == START
    assert ((status.dispatched_at or START) - START).total_seconds() == 1
    assert ((status.completed_at or START) - START).total_seconds() == 2
    assert ((status.deadline or START) - START).total_seconds() == 100
    assert isinstance(status.response, SuccessResponse)
    assert inline_of(status.response.response) == b"42"


async def test_the_url_of_a_large_result_is_minted_at_every_read(world: World) -> None:
    created = await world.create()
    await world.respond(await world.lease(), success(bytes(5_000)))

    paths = set()
    for _ in range(2):
        response = (await world.status(created.command_id)).response
        assert isinstance(response, SuccessResponse)
        body = response.response
        assert isinstance(body, StorageBody)
        assert body.storage_put_used is True
        assert body.size == 5_000
        assert body.storage_get_request is not None
        assert body.storage_get_request.expiration > world.clock.now()
        paths.add(body.storage_get_request.path)
        world.clock.advance(world.limits.download_url_seconds + 1)
    (path,) = paths
    assert world.blobs.blobs[path] == bytes(5_000)


@pytest.mark.parametrize("wait", [0, 30])
async def test_unknown_and_foreign_commands_are_not_found(world: World, wait: float) -> None:
    created = await world.create()

    with pytest.raises(CommandNotFound):
        await world.status("cmd_none", wait)
    with pytest.raises(CommandNotFound):
        await world.status(created.command_id, wait, within=only("d2"))
    assert world.announcements.results.count == 0


@pytest.mark.parametrize("wait", [-1, MAX_WAIT_SECONDS + 0.001, math.nan, math.inf])
async def test_a_wait_out_of_bounds_is_refused(world: World, wait: float) -> None:
    created = await world.create()

    with pytest.raises(InvalidCommand) as refused:
        await world.status(created.command_id, wait)

    assert refused.value.context["field"] == "waitSeconds"


async def test_a_wait_for_what_has_ended_ends_at_once(world: World) -> None:
    created = await world.create()
    await world.respond(await world.lease())

    status = await asyncio.wait_for(world.status(created.command_id, wait=60), 5)

    assert status.state is State.SUCCEEDED


async def test_a_wait_without_an_end_says_where_the_command_stands(world: World) -> None:
    created = await world.create()

    status = await world.status(created.command_id, wait=0.01)

    assert status.state is State.PENDING
    assert world.announcements.results.count == 0


Ending = Callable[[World, str], Awaitable[None]]


async def by_success(world: World, command_id: str) -> None:
    await world.respond(await world.lease())


async def by_large_success(world: World, command_id: str) -> None:
    await world.respond(await world.lease(), success(bytes(5_000)))


async def by_failure(world: World, command_id: str) -> None:
    await world.respond(await world.lease(), error())


async def by_cancel(world: World, command_id: str) -> None:
    await world.commands.cancel(command_id)


async def by_cancelled_holder(world: World, command_id: str) -> None:
    lease = await world.lease()
    await world.commands.cancel(command_id)
    await world.respond(lease, error("CANCELLED"))


async def by_release_of_a_cancelled_one(world: World, command_id: str) -> None:
    lease = await world.lease()
    await world.commands.cancel(command_id)
    await world.leases.release(lease.lease_id, costs_attempt=False)


async def by_sweep(world: World, command_id: str) -> None:
    world.clock.advance(200)
    await world.sweeper.tick()


async def by_late_response(world: World, command_id: str) -> None:
    lease = await world.lease()
    world.clock.advance(200)
    await world.respond(lease)


async def by_late_cancel(world: World, command_id: str) -> None:
    world.clock.advance(200)
    await world.commands.cancel(command_id)


async def by_late_release(world: World, command_id: str) -> None:
    lease = await world.lease()
    world.clock.advance(200)
    await world.leases.release(lease.lease_id)


async def by_a_late_poll(world: World, command_id: str) -> None:
    world.clock.advance(200)
    assert (await world.poll()).leases == []


async def by_a_late_look(world: World, command_id: str) -> None:
    world.clock.advance(200)
    await world.status(command_id)


async def by_releases(world: World, command_id: str) -> None:
    for _ in range(2):
        await world.leases.release((await world.lease()).lease_id)


async def by_lapses(world: World, command_id: str) -> None:
    for _ in range(2):
        await world.lease(seconds=1)
        await world.pass_time(2)


ENDINGS: dict[Ending, tuple[State, str | None]] = {
    by_success: (State.SUCCEEDED, None),
    by_large_success: (State.SUCCEEDED, None),
    by_failure: (State.FAILED, "HANDLER_ERROR"),
    by_cancel: (State.FAILED, lifecycle.CANCELLED),
    by_cancelled_holder: (State.FAILED, lifecycle.CANCELLED),
    by_release_of_a_cancelled_one: (State.FAILED, lifecycle.CANCELLED),
    by_sweep: (State.EXPIRED, None),
    by_late_response: (State.EXPIRED, None),
    by_late_cancel: (State.EXPIRED, None),
    by_late_release: (State.EXPIRED, None),
    by_a_late_poll: (State.EXPIRED, None),
    by_a_late_look: (State.EXPIRED, None),
    by_releases: (State.FAILED, lifecycle.MAX_ATTEMPTS_EXCEEDED),
    by_lapses: (State.FAILED, lifecycle.MAX_ATTEMPTS_EXCEEDED),
}


@pytest.mark.parametrize("end", ENDINGS, ids=lambda end: end.__name__)
async def test_every_end_is_told_at_once_to_all_who_wait_for_it(world: World, end: Ending) -> None:
    state, code = ENDINGS[end]
    created = await world.create(deadline_in=100, max_attempts=2)
    waits = [asyncio.ensure_future(world.status(created.command_id, wait=60)) for _ in range(3)]
    await world.quiet()

    await end(world, created.command_id)

    for status in await asyncio.wait_for(asyncio.gather(*waits), 5):
        assert status.state is state
        assert status.completed_at == world.clock.now()
        if state is State.FAILED:
            assert isinstance(status.response, ErrorResponse)
            assert status.response.code == code
        if state is State.SUCCEEDED:
            assert isinstance(status.response, SuccessResponse)
        assert status == await world.status(created.command_id)
    assert world.announcements.results.count == 0


async def test_an_end_between_look_and_sleep_is_not_missed(world: World) -> None:
    created = await world.create()
    lease = await world.lease()
    world.announcements.results.wake(
        created.command_id
    )  # nothing is remembered: the database is asked
    gate = world.store.gates["get"] = Gate()
    waiting = asyncio.ensure_future(world.status(created.command_id, wait=60))
    gate.enter.set()
    await gate.done.wait()

    await world.respond(lease)
    gate.leave.set()

    assert (await asyncio.wait_for(waiting, 5)).state is State.SUCCEEDED


async def test_an_end_that_nobody_waits_for_costs_no_read(world: World) -> None:
    await world.create(deadline_in=10)
    world.clock.advance(11)
    await world.sweeper.tick()

    assert "get" not in world.store.calls


async def test_a_server_that_stops_answers_all_who_wait(world: World) -> None:
    created = await world.create()
    waiting = asyncio.ensure_future(world.status(created.command_id, wait=60))
    await world.quiet()

    world.announcements.close()

    assert (await asyncio.wait_for(waiting, 5)).state is State.PENDING
    late = await asyncio.wait_for(world.status(created.command_id, wait=60), 5)
    assert late.state is State.PENDING


async def test_a_waiter_that_hangs_up_leaves_nothing_behind(world: World) -> None:
    created = await world.create()
    hold = Wait()
    waiting = asyncio.ensure_future(world.status(created.command_id, wait=60, hold=hold))
    await world.quiet()

    hold.end(ConnectionResetError("the client has gone"))
    with pytest.raises(ConnectionResetError):
        await waiting

    assert world.announcements.results.count == 0


async def test_a_store_that_is_away_for_the_second_look_is_told(world: World) -> None:
    created = await world.create()
    lease = await world.lease()
    waiting = asyncio.ensure_future(world.status(created.command_id, wait=0.5))
    await world.quiet()

    world.store.away = {"get"}
    with pytest.raises(StoreUnavailable):
        await asyncio.wait_for(waiting, 5)
    world.store.away = set()

    await world.respond(lease)
    assert (await world.status(created.command_id)).state is State.SUCCEEDED


# cancel


async def test_a_cancelled_command_stays_as_it_ended(world: World) -> None:
    created = await world.create()
    await world.respond(await world.lease(), success(b"1"))

    status = await world.commands.cancel(created.command_id)

    assert status.state is State.SUCCEEDED
    assert status.cancel_requested is None
    assert (await world.status(created.command_id)).state is State.SUCCEEDED


async def test_a_leased_command_is_asked_to_stop_and_its_holder_decides(world: World) -> None:
    created = await world.create()
    lease = await world.lease()

    assert (await world.commands.cancel(created.command_id)).cancel_requested is True
    status = await world.status(created.command_id)
    await world.respond(lease, success(b"1"))

    assert status.state is State.DISPATCHED
    assert status.cancel_requested is True
    assert (await world.status(created.command_id)).state is State.SUCCEEDED


async def test_a_cancelled_command_is_never_run_again(world: World) -> None:
    created = await world.create()
    await world.lease(seconds=1)
    await world.commands.cancel(created.command_id)
    await world.pass_time(2)

    status = await world.status(created.command_id)

    assert status.state is State.FAILED
    assert isinstance(status.response, ErrorResponse)
    assert status.response.code == lifecycle.CANCELLED
    assert (await world.poll()).leases == []


async def test_unknown_and_foreign_commands_cannot_be_cancelled(world: World) -> None:
    created = await world.create()

    with pytest.raises(CommandNotFound):
        await world.commands.cancel("cmd_none")
    with pytest.raises(CommandNotFound):
        await world.commands.cancel(created.command_id, within=only("d2"))
    assert (await world.status(created.command_id)).state is State.PENDING


# lists


async def test_lists_are_newest_first_and_go_on_where_they_stopped(world: World) -> None:
    ids = [(await world.create(command=f"c{number % 2}")).command_id for number in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        page = await world.search.list(CommandFilter(), cursor=cursor, limit=3, within=EVERYTHING)
        seen += [command.command_id for command in page.commands]
        cursor = page.cursor
        if cursor is None:
            break

    assert seen == ids[::-1]
    odd = await world.search.list(
        CommandFilter(command="c1", state=State.PENDING), cursor=None, limit=None, within=only("d1")
    )
    assert [command.command_id for command in odd.commands] == ids[5::-2]


async def test_a_bound_caller_lists_its_own_deployment(world: World) -> None:
    mine = await world.create("d1")
    await world.create("d2")

    listed = await world.search.list(CommandFilter(), cursor=None, limit=None, within=only("d1"))

    assert [command.command_id for command in listed.commands] == [mine.command_id]
    with pytest.raises(Forbidden):
        await world.search.list(
            CommandFilter(deployment_id="d2"), cursor=None, limit=None, within=only("d1")
        )


@pytest.mark.parametrize("cursor", ["", "-1", "x", "1.5", "٣", "9" * 19, " 1"])
async def test_a_cursor_of_somebody_elses_is_refused(world: World, cursor: str) -> None:
    with pytest.raises(InvalidCommand):
        await world.search.list(CommandFilter(), cursor=cursor, limit=None, within=EVERYTHING)


@pytest.mark.parametrize("limit", [0, -1, 1_001])
async def test_a_limit_out_of_bounds_is_refused(world: World, limit: int) -> None:
    with pytest.raises(InvalidCommand):
        await world.search.list(CommandFilter(), cursor=None, limit=limit, within=EVERYTHING)


# payloads


async def test_a_payload_shows_what_is_stored_in_any_state(world: World) -> None:
    created = await world.create(params=b"p")
    before = await world.commands.payload(created.command_id, base_url=BASE, within=EVERYTHING)
    await world.respond(await world.lease(), success(b"r"))

    after = await world.commands.payload(created.command_id, base_url=BASE, within=only("d1"))

    assert before.params is not None
    assert before.response is None
    assert inline_of(before.params) == b"p"
    assert isinstance(after.response, SuccessResponse)
    assert inline_of(after.response.response) == b"r"
    with pytest.raises(CommandNotFound):
        await world.commands.payload("cmd_none", base_url=BASE, within=EVERYTHING)


async def test_there_is_no_payload_before_the_upload(world: World) -> None:
    created = await world.upload(5)

    with pytest.raises(CommandNotFound):
        await world.commands.payload(created.command_id, base_url=BASE, within=EVERYTHING)


async def test_a_planted_payload_changes_bodies_and_no_state(world: World) -> None:
    created = await world.create(params=b"p")
    planted = Payload(params=InlineBody.of(b"q" * 5_000), response=success(b"planted"))

    await world.commands.write_payload(created.command_id, planted)

    status = await world.status(created.command_id)
    assert status.state is State.PENDING
    assert status.response is None
    lease = await world.lease()
    assert world.blobs.blobs[path_of(lease.envelope.params)] == b"q" * 5_000
    await world.respond(lease, success(b"true one"))
    response = (await world.status(created.command_id)).response
    assert isinstance(response, SuccessResponse)
    assert inline_of(response.response) == b"true one"


@pytest.mark.parametrize(
    "planted",
    [Payload(response=success(b"s")), Payload(params=InlineBody.of(b"s")), Payload()],
    ids=["a response", "params", "nothing"],
)
async def test_what_a_command_ended_with_does_not_change(world: World, planted: Payload) -> None:
    created = await world.create()
    await world.respond(await world.lease(), success(b"r"))

    with pytest.raises(InvalidStateTransition):
        await world.commands.write_payload(created.command_id, planted)

    response = (await world.status(created.command_id)).response
    assert isinstance(response, SuccessResponse)
    assert inline_of(response.response) == b"r"
    with pytest.raises(CommandNotFound):
        await world.commands.write_payload("cmd_none", Payload())
