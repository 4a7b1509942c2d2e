"""Push: what is owed is sent, until it is taken, refused or out of time; no restart forgets it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest

from arc_protocol import lifecycle
from arc_protocol.errors import InvalidCommand, KvOperationFailed, StoreUnavailable
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import ErrorResponse, StorageBody, SuccessResponse
from arc_protocol.messages.leases import Envelope
from arc_runtime.network.allowed_hosts import HostPolicy
from arc_server.clock import SystemClock
from arc_server.ports.pushes import Dispatcher
from arc_server.ports.records import Deployment, PushOutcome
from arc_server.push.http import HttpDispatcher
from arc_server.push.null import NullDispatcher
from arc_server.push.outbox import PushLimits
from arc_server.push.push_tokens import PushTokenUnreadable
from tests.support.push_target import (
    LOOPBACK,
    PushWorker,
    local_dispatcher,
    push_worker,
    silent_listener,
)
from tests.support.service_fakes import Gate
from tests.support.service_world import BASE, World, inline_of, path_of, success
from tests.support.waiting import until

QUICK = PushLimits(
    timeout_seconds=5,
    backoff_base_seconds=0.001,
    backoff_cap_seconds=0.002,
    retry_store_seconds=0.001,
)
DEFINITE = (400, 401, 403, 404, 409, 413, 415, 422)
PASSING = (200, 201, 204, 302, 307, 408, 410, 418, 425, 429, 500, 501, 502, 503, 504)

WorldOf = Callable[..., World]


@pytest.fixture
async def worker() -> AsyncIterator[PushWorker]:
    async with push_worker() as worker:
        yield worker


@pytest.fixture
async def pushing(world_of: WorldOf, worker: PushWorker) -> World:
    """A world in real time whose deployment d1 is pushed to the worker."""
    world = world_of(clock=SystemClock())
    await world.sweeper.tick()
    await world.push_to(worker.url)
    return world


@asynccontextmanager
async def outbox_of(
    world: World, limits: PushLimits = QUICK, dispatcher: Dispatcher | None = None
) -> AsyncIterator[asyncio.Task[None]]:
    """The loop that pushes, at work."""
    used = dispatcher or local_dispatcher(limits.timeout_seconds)
    task = asyncio.ensure_future(world.outbox(used, limits).run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await used.close()


def lease_in(envelope: Envelope) -> str:
    return envelope.response_handling.submit_response_url.rpartition("lease=")[2]


async def end_of(world: World, command_id: str) -> State:
    return (await asyncio.wait_for(world.status(command_id, wait=30), 30)).state


async def code_of(world: World, command_id: str) -> tuple[str, str]:
    response = (await world.status(command_id)).response
    assert isinstance(response, ErrorResponse)
    return response.code, response.message


# taken


async def test_a_command_is_pushed_and_its_response_comes_back(
    pushing: World, worker: PushWorker
) -> None:
    async with outbox_of(pushing):
        created = await pushing.create(params=b'{"a":1}', deadline_in=100)
        await until(lambda: worker.received)
        (envelope,) = worker.received

        assert envelope.command_id == created.command_id
        assert envelope.attempt == 1
        assert envelope.deployment_id == "d1"
        assert inline_of(envelope.params) == b'{"a":1}'
        assert envelope.response_handling.submit_response_url.startswith(BASE)
        assert worker.headers[0]["Authorization"] == "Bearer t0k"
        assert worker.headers[0]["Content-Type"] == "application/json"
        await pushing.leases.submit_response(
            created.command_id, success(b"42"), lease_id=lease_in(envelope)
        )

        assert await end_of(pushing, created.command_id) is State.SUCCEEDED
        assert len(worker.received) == 1


async def test_a_create_answers_dispatched_and_is_sent_right_after_its_commit(
    pushing: World, worker: PushWorker
) -> None:
    async with outbox_of(pushing):
        await until(lambda: pushing.announcements.push_outlet)
        await pushing.quiet()
        pushing.store.away = {"lease_push"}
        created = await pushing.create()
        found = await pushing.raw_store.get(created.command_id)
        await until(lambda: worker.received)

    assert created.state is found.command.state is State.DISPATCHED
    assert lease_in(worker.received[0]) == found.command.lease_id
    assert worker.received[0].attempt == 1
    assert len(worker.received) == 1


async def test_an_upload_complete_answers_dispatched_and_is_sent_right_after_its_commit(
    pushing: World, worker: PushWorker
) -> None:
    async with outbox_of(pushing):
        await until(lambda: pushing.announcements.push_outlet)
        await pushing.quiet()
        pushing.store.away = {"lease_push"}
        created = await pushing.upload(3, signature="c2lnbmVk")
        assert created.storage_upload is not None
        await pushing.put(created.storage_upload.put_request, b"abc")
        completed = await pushing.commands.upload_complete(created.command_id, 3)
        found = await pushing.raw_store.get(created.command_id)
        await until(lambda: worker.received)

    assert completed.state is found.command.state is State.DISPATCHED
    [envelope] = worker.received
    assert lease_in(envelope) == found.command.lease_id
    assert inline_of(envelope.params) == b"abc"
    assert (envelope.attempt, envelope.signature) == (1, "c2lnbmVk")


async def test_params_to_come_and_repeats_are_dispatched_by_no_create(
    pushing: World, worker: PushWorker
) -> None:
    async with outbox_of(pushing):
        await until(lambda: pushing.announcements.push_outlet)
        awaited = await pushing.upload(3)
        await pushing.create(key="k")
        again = await pushing.create(key="k")
        await until(lambda: "renew" in pushing.store.answered)

    assert awaited.state is State.PENDING_UPLOAD
    assert (again.state, again.is_replay) == (State.DISPATCHED, True)
    assert len(worker.received) == 1


async def test_a_create_that_finds_no_send_free_is_pending_and_sent_in_its_turn(
    pushing: World, worker: PushWorker
) -> None:
    answering = asyncio.Event()

    async def take_later(_: Envelope) -> int:
        await answering.wait()
        return 202

    worker.answers = [take_later, 202]
    async with outbox_of(pushing, PushLimits(concurrency=1)):
        await until(lambda: pushing.announcements.push_outlet)
        states = [(await pushing.create()).state for _ in range(2)]
        answering.set()
        await until(lambda: len(worker.received) == 2)

    assert states == [State.DISPATCHED, State.PENDING]


async def test_a_create_that_outlasts_the_outbox_is_sent_after_the_restart_at_no_cost(
    pushing: World, worker: PushWorker
) -> None:
    gate = pushing.store.gates["create"] = Gate()
    async with outbox_of(pushing):
        await until(lambda: pushing.announcements.push_outlet)
        creating = asyncio.ensure_future(pushing.create(max_attempts=1))
        gate.enter.set()
        await gate.done.wait()
    gate.leave.set()
    created = await creating
    assert (await pushing.status(created.command_id)).state is State.PENDING
    assert not worker.received

    restarted = pushing.restarted()
    async with outbox_of(restarted):
        await until(lambda: worker.received)

    assert [envelope.attempt for envelope in worker.received] == [1]
    restarted.close()


async def test_a_command_is_dispatched_before_it_is_sent(
    pushing: World, worker: PushWorker
) -> None:
    seen: list[State] = []

    async def look(envelope: Envelope) -> int:
        found = await pushing.raw_store.get(envelope.command_id)
        seen.append(found.command.state)
        return 202

    worker.answers = [look]
    async with outbox_of(pushing):
        await pushing.create()
        await until(lambda: seen)

    assert seen == [State.DISPATCHED]


async def test_once_taken_it_has_the_time_that_a_response_may_take(
    pushing: World, worker: PushWorker
) -> None:
    async with outbox_of(pushing):
        created = await pushing.create()
        await until(lambda: "renew" in pushing.store.answered)
        await pushing.quiet()

        found = await pushing.raw_store.get(created.command_id)
        left = (found.command.lease_expires_at - pushing.clock.now()).total_seconds()

    assert QUICK.response_seconds - 20 < left <= QUICK.response_seconds


async def test_a_deployment_without_a_token_is_pushed_to_without_one(
    pushing: World, worker: PushWorker
) -> None:
    await pushing.push_to(worker.url, token=None)
    async with outbox_of(pushing):
        await pushing.create()
        await until(lambda: worker.headers)

    assert "Authorization" not in worker.headers[0]


async def test_agents_get_none_of_it(pushing: World) -> None:
    created = await pushing.create()

    assert (await pushing.poll(count=10)).leases == []
    assert (await pushing.status(created.command_id)).state is State.PENDING


async def test_a_large_body_is_handed_over_by_url(pushing: World, worker: PushWorker) -> None:
    async with outbox_of(pushing):
        await pushing.create(params=bytes(5_000))
        await until(lambda: worker.received)

    params = worker.received[0].params
    assert isinstance(params, StorageBody)
    assert pushing.blobs.blobs[path_of(params)] == bytes(5_000)


async def test_a_response_before_the_202_counts(pushing: World, worker: PushWorker) -> None:
    async def respond_first(envelope: Envelope) -> int:
        await pushing.leases.submit_response(
            envelope.command_id, success(b"quick"), lease_id=lease_in(envelope)
        )
        return 202

    worker.answers = [respond_first]
    async with outbox_of(pushing):
        created = await pushing.create()

        assert await end_of(pushing, created.command_id) is State.SUCCEEDED
        await until(lambda: "renew" in pushing.store.answered)
        assert (await pushing.status(created.command_id)).state is State.SUCCEEDED


# refused


@pytest.mark.parametrize("status", DEFINITE)
async def test_a_definite_rejection_fails_the_command_at_once(
    pushing: World, worker: PushWorker, status: int
) -> None:
    worker.answers = [status]
    async with outbox_of(pushing):
        created = await pushing.create()
        assert await end_of(pushing, created.command_id) is State.FAILED

    code, message = await code_of(pushing, created.command_id)
    assert code == lifecycle.DELIVERY_FAILED
    assert f"HTTP {status}" in message
    assert len(worker.received) == 1


async def test_a_rejection_after_the_response_changes_nothing(
    pushing: World, worker: PushWorker
) -> None:
    async def respond_then_refuse(envelope: Envelope) -> int:
        await pushing.leases.submit_response(
            envelope.command_id, success(), lease_id=lease_in(envelope)
        )
        return 409

    worker.answers = [respond_then_refuse]
    async with outbox_of(pushing):
        created = await pushing.create()
        assert await end_of(pushing, created.command_id) is State.SUCCEEDED
        await until(lambda: "complete" in pushing.store.answered[-3:])

    assert (await pushing.status(created.command_id)).state is State.SUCCEEDED


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "nonsense",
        "ftp://example.test/x",
        "http://" + "a" * 70 + ".test/",
        "http://user:secret@127.0.0.1:99999/x?key=hidden",
    ],
)
async def test_a_url_that_cannot_be_used_fails_the_command_and_shows_no_secret(
    pushing: World, url: str
) -> None:
    await pushing.push_to(url)
    async with outbox_of(pushing):
        created = await pushing.create()
        assert await end_of(pushing, created.command_id) is State.FAILED

    code, message = await code_of(pushing, created.command_id)
    assert code == lifecycle.DELIVERY_FAILED
    assert "secret" not in message
    assert "hidden" not in message


async def test_a_token_that_cannot_be_sent_fails_the_command_and_is_not_shown(
    pushing: World, worker: PushWorker
) -> None:
    await pushing.push_to(worker.url, token="two\r\nlines")
    async with outbox_of(pushing):
        created = await pushing.create()
        assert await end_of(pushing, created.command_id) is State.FAILED

    code, message = await code_of(pushing, created.command_id)
    assert code == lifecycle.DELIVERY_FAILED
    assert "lines" not in message
    assert not worker.received


async def test_without_a_push_url_there_is_nobody_to_send_to(world: World) -> None:
    await world.create()
    envelope = (await world.lease()).envelope
    dispatcher = local_dispatcher(1)

    outcome = await dispatcher.push(Deployment(deployment_id="d1", targets=[]), envelope)

    assert (outcome.accepted, outcome.is_definite) == (False, True)
    await dispatcher.close()


# sent again


@pytest.mark.parametrize("status", PASSING)
async def test_anything_else_is_sent_again_under_the_same_lease_with_the_next_attempt(
    pushing: World, worker: PushWorker, status: int
) -> None:
    worker.answers = [status, status, 202]
    await pushing.push_to(worker.url.replace("127.0.0.1", "localhost"))  # where cookies stick
    async with outbox_of(pushing):
        created = await pushing.create()
        await until(lambda: len(worker.received) == 3)
        await until(lambda: "renew" in pushing.store.answered)

    assert {envelope.command_id for envelope in worker.received} == {created.command_id}
    assert [envelope.attempt for envelope in worker.received] == [1, 2, 3]
    assert len({lease_in(envelope) for envelope in worker.received}) == 1
    uploads = {
        envelope.response_handling.storage_upload_request.path for envelope in worker.received
    }
    assert len(uploads) == 1
    assert worker.elsewhere == []
    assert all("Cookie" not in headers for headers in worker.headers)


async def test_the_attempts_end_it(pushing: World, worker: PushWorker) -> None:
    worker.answers = [503]
    async with outbox_of(pushing):
        created = await pushing.create(max_attempts=3)
        assert await end_of(pushing, created.command_id) is State.FAILED

    assert (await code_of(pushing, created.command_id))[0] == lifecycle.MAX_ATTEMPTS_EXCEEDED
    assert [envelope.attempt for envelope in worker.received] == [1, 2, 3]


async def test_the_deadline_ends_it(pushing: World, worker: PushWorker) -> None:
    worker.answers = [503]
    patient = PushLimits(backoff_base_seconds=0.02, backoff_cap_seconds=0.02)
    async with outbox_of(pushing, patient):
        created = await pushing.create(max_attempts=100, deadline_in=0.3)
        await until(lambda: worker.received)
        sweeping = asyncio.ensure_future(pushing.sweeper.run())

        assert await end_of(pushing, created.command_id) is State.EXPIRED
        await until(lambda: not worker.busy)
        sent = len(worker.received)
        pushing.announcements.push_ready()
        await pushing.quiet()
        assert len(worker.received) == sent
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)


async def test_a_target_that_refuses_connections_is_tried_again(pushing: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, never listening
        await pushing.push_to(f"http://127.0.0.1:{taken.getsockname()[1]}/x")
        async with outbox_of(pushing):
            created = await pushing.create(max_attempts=2)
            assert await end_of(pushing, created.command_id) is State.FAILED

    status = await pushing.status(created.command_id)
    assert status.attempt == 2
    assert (await code_of(pushing, created.command_id))[0] == lifecycle.MAX_ATTEMPTS_EXCEEDED


async def test_a_target_that_never_answers_is_tried_again(pushing: World) -> None:
    async with silent_listener() as url:
        await pushing.push_to(url)
        limits = PushLimits(timeout_seconds=0.02, backoff_base_seconds=0.001)
        async with outbox_of(pushing, limits):
            created = await pushing.create(max_attempts=2)
            assert await end_of(pushing, created.command_id) is State.FAILED

    assert (await pushing.status(created.command_id)).attempt == 2


async def test_how_long_a_target_may_take_to_answer_is_bounded(world: World) -> None:
    await world.create()
    envelope = (await world.lease()).envelope
    dispatcher = local_dispatcher(0.02)

    async with silent_listener() as url:
        outcome = await dispatcher.push(
            Deployment(deployment_id="d1", targets=[], push_url=url), envelope
        )

    assert outcome == PushOutcome(accepted=False, reason="no answer in time")
    await dispatcher.close()


async def test_a_target_that_hangs_up_is_tried_again(pushing: World, worker: PushWorker) -> None:
    async def hang_up(_: Envelope) -> int:
        raise ConnectionResetError

    worker.answers = [hang_up, 202]
    async with outbox_of(pushing):
        await pushing.create()
        await until(lambda: len(worker.received) == 2)


async def test_a_response_of_the_first_send_counts_after_a_second_one(
    pushing: World, worker: PushWorker
) -> None:
    worker.answers = [500, 202]
    async with outbox_of(pushing):
        created = await pushing.create()
        await until(lambda: len(worker.received) == 2)
        first = worker.received[0]
        await pushing.put(first.response_handling.storage_upload_request, b"r" * 5_000)

        await pushing.leases.submit_response(
            created.command_id,
            SuccessResponse(response=StorageBody(size=5_000, storage_put_used=True)),
            lease_id=lease_in(first),
        )

        assert await end_of(pushing, created.command_id) is State.SUCCEEDED


async def test_a_response_during_the_back_off_counts_and_nothing_is_sent_again(
    pushing: World, worker: PushWorker
) -> None:
    worker.answers = [500]
    slow = PushLimits(backoff_base_seconds=1_000, backoff_cap_seconds=1_000)
    async with outbox_of(pushing, slow):
        created = await pushing.create()
        await until(lambda: "release" in pushing.store.answered)
        await pushing.quiet()
        await pushing.leases.submit_response(
            created.command_id, success(), lease_id=lease_in(worker.received[0])
        )

        assert await end_of(pushing, created.command_id) is State.SUCCEEDED
        assert await pushing.raw_store.next_push_at() is None
    assert len(worker.received) == 1


async def test_the_back_off_is_waited_for(world: World, worker: PushWorker) -> None:
    await world.push_to(worker.url)
    worker.answers = [500, 202]
    slow = PushLimits(backoff_base_seconds=1_000, backoff_cap_seconds=1_000)
    async with outbox_of(world, slow):
        await world.create()
        await until(lambda: "release" in world.store.answered)
        due = await world.raw_store.next_push_at()
        assert due is not None
        pause = (due - world.clock.now()).total_seconds()
        assert 0 <= pause <= 1_000
        world.announcements.push_ready()
        await until(lambda: world.store.answered[-1] == "next_push_at")
        assert len(worker.received) == (1 if pause else 2)

        world.clock.advance(pause)
        world.announcements.push_ready()

        await until(lambda: len(worker.received) == 2)


async def test_an_accepted_command_without_a_response_in_time_is_sent_again(
    world: World, worker: PushWorker
) -> None:
    await world.push_to(worker.url)
    async with outbox_of(world):
        await world.create()
        await until(lambda: "renew" in world.store.answered)
        await world.pass_time(QUICK.response_seconds)
        await until(lambda: len(worker.received) == 2)

    assert [envelope.attempt for envelope in worker.received] == [1, 2]
    assert len({lease_in(envelope) for envelope in worker.received}) == 1


@pytest.mark.parametrize("jump", [-3_600.0, 3_600.0, -315_360_000.0, 315_360_000.0])
async def test_a_wall_clock_that_is_set_puts_no_push_off(
    world: World, worker: PushWorker, jump: float
) -> None:
    await world.push_to(worker.url)
    worker.answers = [500, 202, 202]
    slow = PushLimits(backoff_base_seconds=100, backoff_cap_seconds=100)
    async with outbox_of(world, slow):
        await world.create()
        await until(lambda: "release" in world.store.answered)
        world.clock.jump_wall(jump)
        await world.pass_time(4)
        world.clock.advance(100)
        world.announcements.push_ready()
        await until(lambda: len(worker.received) == 2)
        await until(lambda: "renew" in world.store.answered)
        world.clock.jump_wall(jump)
        await world.sweeper.tick()
        await world.pass_time(slow.response_seconds + 50)
        await until(lambda: len(worker.received) >= 3)


# cancel


async def test_a_cancel_during_the_back_off_ends_it(pushing: World, worker: PushWorker) -> None:
    worker.answers = [500]
    slow = PushLimits(backoff_base_seconds=1_000, backoff_cap_seconds=1_000)
    async with outbox_of(pushing, slow):
        created = await pushing.create()
        await until(lambda: "release" in pushing.store.answered)
        await pushing.quiet()

        status = await pushing.commands.cancel(created.command_id)

    assert status.state is State.FAILED
    assert (await code_of(pushing, created.command_id))[0] == lifecycle.CANCELLED


async def test_a_cancel_of_one_that_is_out_ends_it_when_it_would_be_sent_again(
    pushing: World, worker: PushWorker
) -> None:
    answering = asyncio.Event()

    async def fail_later(_: Envelope) -> int:
        await answering.wait()
        return 500

    worker.answers = [fail_later]
    async with outbox_of(pushing):
        created = await pushing.create()
        await until(lambda: worker.received)
        assert (await pushing.commands.cancel(created.command_id)).cancel_requested
        answering.set()

        assert await end_of(pushing, created.command_id) is State.FAILED
    assert (await code_of(pushing, created.command_id))[0] == lifecycle.CANCELLED
    assert len(worker.received) == 1


# restarts, bounds, failures


async def test_what_was_owed_before_a_restart_is_sent_after_it(
    pushing: World, worker: PushWorker
) -> None:
    ids = {(await pushing.create()).command_id for _ in range(3)}

    restarted = pushing.restarted()
    async with outbox_of(restarted):
        await until(lambda: len(worker.received) == 3)

    assert {envelope.command_id for envelope in worker.received} == ids
    restarted.close()


async def test_what_was_in_back_off_at_a_restart_is_sent_when_it_is_due(
    world: World, worker: PushWorker
) -> None:
    await world.push_to(worker.url)
    worker.answers = [500, 202]
    slow = PushLimits(backoff_base_seconds=1_000, backoff_cap_seconds=1_000)
    async with outbox_of(world, slow):
        await world.create()
        await until(lambda: "release" in world.store.answered)
        await world.quiet()
    world.clock.advance(1_000)

    restarted = world.restarted()
    async with outbox_of(restarted):
        await until(lambda: len(worker.received) == 2)
    assert [envelope.attempt for envelope in worker.received] == [1, 2]
    restarted.close()


async def test_what_was_being_sent_when_the_server_died_is_sent_again_after_the_grace(
    world: World, worker: PushWorker
) -> None:
    await world.push_to(worker.url)
    forever = asyncio.Event()

    async def never(_: Envelope) -> int:
        await forever.wait()
        return 202

    worker.answers = [never, 202]
    async with outbox_of(world):
        await world.create()
        await until(lambda: worker.received)
    forever.set()
    world.clock.advance(60)

    restarted = world.restarted()
    await restarted.sweeper.tick()
    async with outbox_of(restarted):
        await world.quiet()
        assert len(worker.received) == 1
        await restarted.pass_time(restarted.sweep_limits.outage_grace_seconds)
        await until(lambda: len(worker.received) == 2)
    assert len({lease_in(envelope) for envelope in worker.received}) == 1
    restarted.close()


async def test_no_more_are_sent_at_a_time_than_may_be(pushing: World, worker: PushWorker) -> None:
    letting = asyncio.Semaphore(0)

    async def slowly(_: Envelope) -> int:
        await letting.acquire()
        return 202

    worker.answers = [slowly]
    limits = PushLimits(concurrency=4)
    async with outbox_of(pushing, limits):
        ids = {(await pushing.create()).command_id for _ in range(30)}
        await until(lambda: worker.busy == 4)
        await pushing.quiet()
        assert worker.busy == 4
        for _ in range(30):
            letting.release()
        await until(lambda: len(worker.received) == 30)
        await until(lambda: pushing.store.answered.count("renew") == 30)

    assert worker.most_busy == 4
    assert {envelope.command_id for envelope in worker.received} == ids


async def test_creates_that_overlap_start_no_more_sends_than_there_may_be(
    pushing: World, worker: PushWorker
) -> None:
    letting = asyncio.Semaphore(0)

    async def slowly(_: Envelope) -> int:
        await letting.acquire()
        return 202

    worker.answers = [slowly]
    async with outbox_of(pushing, PushLimits(concurrency=4, per_deployment=2)):
        await until(lambda: pushing.announcements.push_outlet)
        made = await asyncio.gather(*(pushing.create() for _ in range(30)))
        await until(lambda: worker.busy == 2)
        await pushing.quiet()
        for _ in range(30):
            letting.release()
        await until(lambda: len(worker.received) == 30)
        await until(lambda: pushing.store.answered.count("renew") == 30)

    assert worker.most_busy == 2
    assert len({each.command_id for each in made}) == 30


@pytest.mark.parametrize("key", ["again", None])
async def test_a_create_that_stores_nothing_gives_the_place_of_its_send_back(
    pushing: World, worker: PushWorker, key: str | None
) -> None:
    async with outbox_of(pushing, PushLimits(concurrency=1, per_deployment=1)):
        await until(lambda: pushing.announcements.push_outlet)
        if key is None:
            with pytest.raises(InvalidCommand):
                await pushing.create(deadline_in=-1)
        else:
            first = await pushing.create(key=key)
            await until(lambda: "renew" in pushing.store.answered)
            await pushing.quiet()
            assert (await pushing.create(key=key)).command_id == first.command_id
        await pushing.quiet()
        created = await pushing.create()
        await until(lambda: created.command_id in {each.command_id for each in worker.received})


@pytest.mark.parametrize("method", ["lease_push", "next_push_at"])
@pytest.mark.parametrize(
    "failure", [StoreUnavailable("away"), KvOperationFailed("broken"), ValueError("a bug")]
)
async def test_the_loop_outlives_whatever_fails(
    pushing: World, worker: PushWorker, method: str, failure: Exception
) -> None:
    pushing.store.raises = {method: failure}
    async with outbox_of(pushing) as loop:
        first = await pushing.create()
        await until(lambda: pushing.store.calls.count(method) >= 3)
        pushing.store.raises = {}
        second = await pushing.create()
        await until(lambda: len(worker.received) >= 2)

        assert not loop.done()
    assert {envelope.command_id for envelope in worker.received} == {
        first.command_id,
        second.command_id,
    }


class Scripted:
    """A dispatcher that does as it is told."""

    def __init__(self, *outcomes: PushOutcome | Exception) -> None:
        self.outcomes = list(outcomes)
        self.pushed: list[Envelope] = []

    async def push(self, deployment: Deployment, envelope: Envelope) -> PushOutcome:
        self.pushed.append(envelope)
        outcome = self.outcomes[0] if len(self.outcomes) == 1 else self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def close(self) -> None:
        pass


ACCEPTED = PushOutcome(accepted=True)
REJECTED = PushOutcome(accepted=False, is_definite=True, reason="no")
POSTPONED = PushOutcome(accepted=False, reason="later")


@pytest.mark.parametrize(
    ("outcome", "method"),
    [
        (ACCEPTED, "get_deployment"),
        (ACCEPTED, "renew"),
        (REJECTED, "complete"),
        (POSTPONED, "release"),
    ],
)
async def test_what_could_not_be_noted_is_sent_again_when_its_lease_has_lapsed(
    world: World, outcome: PushOutcome, method: str
) -> None:
    await world.push_to("http://worker.test/")
    dispatcher = Scripted(outcome, ACCEPTED)
    world.store.away = {method}
    async with outbox_of(world, dispatcher=dispatcher):
        created = await world.create()
        await until(lambda: method in world.store.calls)
        await world.quiet()
        world.store.away = set()
        sent = len(dispatcher.pushed)
        await world.pass_time(QUICK.timeout_seconds + lifecycle.SUBMIT_MARGIN_SECONDS)
        await until(lambda: len(dispatcher.pushed) == sent + 1)

        assert (await world.status(created.command_id)).attempt == 2


async def test_a_dispatcher_that_raises_costs_an_attempt_and_stops_nothing(world: World) -> None:
    await world.push_to("http://worker.test/")
    dispatcher = Scripted(ValueError("a bug"), ACCEPTED)
    async with outbox_of(world, dispatcher=dispatcher) as loop:
        await world.create()
        await until(lambda: dispatcher.pushed)
        other = await world.create()
        await until(lambda: len(dispatcher.pushed) == 2)
        await world.pass_time(QUICK.timeout_seconds + lifecycle.SUBMIT_MARGIN_SECONDS)
        await until(lambda: len(dispatcher.pushed) >= 3)

        assert not loop.done()
    assert dispatcher.pushed[1].command_id == other.command_id


async def test_nobody_is_sent_what_expired_before_it_was_due(world: World) -> None:
    await world.push_to("http://worker.test/")
    created = await world.create(deadline_in=10)
    waiting = asyncio.ensure_future(world.status(created.command_id, wait=60))
    await world.quiet()
    world.clock.advance(11)
    dispatcher = Scripted(ACCEPTED)
    async with outbox_of(world, dispatcher=dispatcher):
        assert (await asyncio.wait_for(waiting, 5)).state is State.EXPIRED

    assert not dispatcher.pushed


async def test_a_server_that_stops_ends_the_loop_after_the_sends_in_progress(
    pushing: World, worker: PushWorker
) -> None:
    answering = asyncio.Event()

    async def later(_: Envelope) -> int:
        await answering.wait()
        return 202

    worker.answers = [later]
    async with outbox_of(pushing) as loop:
        await pushing.create()
        await until(lambda: worker.received)
        pushing.announcements.close()
        await pushing.quiet()
        assert not loop.done()
        answering.set()
        await asyncio.wait_for(loop, 5)

    assert "renew" in pushing.store.answered


async def test_a_deployment_that_is_no_longer_pushed_to_gives_its_commands_to_agents(
    pushing: World,
) -> None:
    created = await pushing.create()
    await pushing.raw_store.put_deployment(
        Deployment(deployment_id="d1", targets=[]), pushing.clock.now()
    )

    assert (await pushing.lease()).command_id == created.command_id


async def test_a_push_url_that_is_taken_away_before_a_send_leaves_the_command_to_agents(
    pushing: World, worker: PushWorker
) -> None:
    gate = pushing.store.gates["get_deployment"] = Gate()
    async with outbox_of(pushing):
        await until(lambda: pushing.announcements.push_outlet)
        created = await pushing.create(max_attempts=1)
        await gate.arrived.wait()
        await pushing.raw_store.set_push("d1", None, None, pushing.clock.now(), None)
        polling = asyncio.ensure_future(pushing.poll(wait=20))
        gate.enter.set()
        gate.leave.set()
        answer = await asyncio.wait_for(polling, 10)

    assert created.state is State.DISPATCHED
    assert [(each.command_id, each.attempt) for each in answer.leases] == [(created.command_id, 1)]
    assert not worker.received


async def test_a_grant_lost_before_it_was_sent_is_found_again(world: World) -> None:
    await world.push_to("http://worker.test/")
    gate = world.store.gates["lease_push"] = Gate()
    async with outbox_of(world, dispatcher=Scripted(ACCEPTED)):
        await world.create()
        gate.enter.set()
        await gate.done.wait()
    world.store.gates.clear()

    dispatcher = Scripted(ACCEPTED)
    async with outbox_of(world, dispatcher=dispatcher):
        await world.pass_time(QUICK.timeout_seconds + lifecycle.SUBMIT_MARGIN_SECONDS)
        await until(lambda: dispatcher.pushed)


async def test_a_server_that_pushes_nothing_accepts_everything(world: World) -> None:
    await world.push_to("http://worker.test/")
    async with outbox_of(world, dispatcher=NullDispatcher()):
        created = await world.create()
        await until(lambda: "renew" in world.store.answered)

    assert (await world.status(created.command_id)).state is State.DISPATCHED


# receivers that are away

BREAKING = PushLimits(
    timeout_seconds=5,
    backoff_base_seconds=0.001,
    backoff_cap_seconds=0.002,
    per_deployment=2,
    circuit_failures=2,
    circuit_base_seconds=3600,
    circuit_cap_seconds=3600,
)


async def test_a_receiver_that_fails_gets_a_pause_and_commands_keep_their_attempts(
    pushing: World, worker: PushWorker
) -> None:
    worker.answers = [503]
    async with outbox_of(pushing, BREAKING):
        made = [(await pushing.create(max_attempts=5)).command_id for _ in range(6)]
        await until(pushing.raw_store.list_circuits)
        await pushing.quiet()
        found = [(await pushing.raw_store.get(each)).command for each in made]
        late = await pushing.create()
        await pushing.quiet()

    [circuit] = await pushing.raw_store.list_circuits()
    assert (circuit.deployment_id, circuit.reason) == ("d1", "HTTP 503")
    assert sum(command.attempt - 1 for command in found) <= 4
    assert {command.state for command in found} == {State.PENDING}
    assert late.state is State.PENDING
    assert len(worker.received) <= 4


async def test_a_probe_that_is_answered_lets_everything_through(
    pushing: World, worker: PushWorker
) -> None:
    worker.answers = [503, 503, 503, 202]
    limits = PushLimits(
        timeout_seconds=5,
        backoff_base_seconds=0.001,
        backoff_cap_seconds=0.002,
        per_deployment=1,
        circuit_failures=2,
        circuit_base_seconds=0.01,
        circuit_cap_seconds=0.01,
    )
    async with outbox_of(pushing, limits):
        made = [(await pushing.create()).command_id for _ in range(4)]
        await until(lambda: {each.command_id for each in worker.received[3:]} == set(made))
        await until(lambda: "close_circuit" in pushing.store.answered)

    assert await pushing.raw_store.list_circuits() == []


async def test_a_definite_rejection_is_an_answer(pushing: World, worker: PushWorker) -> None:
    worker.answers = [404]
    async with outbox_of(pushing, BREAKING):
        for _ in range(4):
            assert await end_of(pushing, (await pushing.create()).command_id) is State.FAILED

    assert await pushing.raw_store.list_circuits() == []


async def test_a_receiver_that_is_slow_does_not_hold_others_up(
    pushing: World, worker: PushWorker
) -> None:
    answering = asyncio.Event()

    async def by_deployment(envelope: Envelope) -> int:
        if envelope.deployment_id == "d1":
            await answering.wait()
        return 202

    worker.answers = [by_deployment]
    await pushing.push_to(worker.url, "d2")
    limits = PushLimits(concurrency=4, per_deployment=2)
    async with outbox_of(pushing, limits):
        for _ in range(20):
            await pushing.create("d1")
        for _ in range(5):
            await pushing.create("d2")
        await until(lambda: sum(each.deployment_id == "d2" for each in worker.received) == 5)
        slow = sum(each.deployment_id == "d1" for each in worker.received)
        answering.set()
        await until(lambda: len(worker.received) == 25)

    assert slow == 2
    assert worker.most_busy <= 4


async def test_receivers_that_are_slow_together_do_not_hold_another_up(
    pushing: World, worker: PushWorker
) -> None:
    answering = asyncio.Semaphore(0)

    async def slowly(envelope: Envelope) -> int:
        if envelope.deployment_id != "d3":
            await answering.acquire()
        return 202

    worker.answers = [slowly]
    for other in ("d2", "d3"):
        await pushing.push_to(worker.url, other)
    async with outbox_of(pushing, PushLimits(concurrency=4, per_deployment=2)):
        for deployment in ("d1", "d2"):
            for _ in range(6):
                await pushing.create(deployment)
        await until(lambda: worker.busy == 4)
        await pushing.create("d3")
        answering.release()
        await until(lambda: len(worker.received) > 4)
        fifth = worker.received[4].deployment_id
        for _ in range(12):
            answering.release()
        await until(lambda: len(worker.received) == 13)

    assert fifth == "d3"


async def test_an_open_circuit_outlasts_a_restart(pushing: World, worker: PushWorker) -> None:
    worker.answers = [503]
    async with outbox_of(pushing, BREAKING):
        await pushing.create()
        await pushing.create()
        await until(pushing.raw_store.list_circuits)
        await pushing.quiet()
    sent = len(worker.received)

    restarted = pushing.restarted()
    async with outbox_of(restarted, BREAKING):
        await until(lambda: restarted.announcements.push_outlet)
        await restarted.create()
        await until(lambda: restarted.store.answered[-1] == "next_push_at")

    assert len(worker.received) == sent
    restarted.close()


async def test_a_new_push_url_closes_the_circuit_at_once(
    pushing: World, worker: PushWorker
) -> None:
    worker.answers = [503]
    dispatcher = local_dispatcher(5)
    outbox = pushing.outbox(dispatcher, BREAKING)
    task = asyncio.ensure_future(outbox.run())
    made = [(await pushing.create()).command_id for _ in range(3)]
    await until(pushing.raw_store.list_circuits)
    await pushing.quiet()

    worker.answers = [202]
    await pushing.raw_store.set_push("d1", f"{worker.url}?new", None, pushing.clock.now(), "root")
    outbox.refresh()
    await until(lambda: {each.command_id for each in worker.received} >= set(made))

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await dispatcher.close()


async def test_a_circuit_that_cannot_be_stored_still_protects(
    pushing: World, worker: PushWorker
) -> None:
    worker.answers = [503]
    pushing.store.away = {"put_circuit"}
    async with outbox_of(pushing, BREAKING):
        for _ in range(6):
            await pushing.create()
        await until(lambda: len(worker.received) >= 2)
        await pushing.quiet()
        await until(lambda: pushing.store.answered[-1] == "next_push_at")

    assert len(worker.received) <= 4


@pytest.mark.parametrize(
    ("allowed", "reason"),
    [("10.0.0.0/8", "push.allow_hosts"), ("169.254.0.0/16", "push.allow_hosts")],
)
async def test_private_addresses_are_refused_unless_they_are_configured(
    worker: PushWorker, allowed: str, reason: str
) -> None:
    dispatcher = local_dispatcher(5, allowed)
    envelope = cast("Envelope", None)  # it is refused before anything is made of it

    for url in (worker.url, worker.url.replace("127.0.0.1", "localhost"), "http://169.254.169.254"):
        deployment = Deployment(deployment_id="d1", targets=[], push_url=url)
        outcome = await dispatcher.push(deployment, envelope)
        assert not outcome.accepted
        assert not outcome.is_definite
        assert reason in outcome.reason or "link-local" in outcome.reason

    assert worker.received == []
    await dispatcher.close()


async def test_a_name_is_judged_by_the_addresses_that_it_has(
    pushing: World, worker: PushWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(*_: object, **__: object) -> list[dict[str, object]]:
        port = int(worker.url.rpartition(":")[2].partition("/")[0])
        return [{"hostname": "w.test", "host": "127.0.0.1", "port": port, "family": socket.AF_INET,
                 "proto": 0, "flags": 0}]  # fmt: skip

    monkeypatch.setattr("arc_runtime.network.allowed_hosts.ThreadedResolver.resolve", resolve)
    await pushing.push_to(worker.url.replace("127.0.0.1", "w.test"))
    async with outbox_of(pushing, BREAKING, local_dispatcher(5, "10.0.0.0/8")):
        await pushing.create()
        await pushing.create()
        [circuit] = await until(pushing.raw_store.list_circuits)

    assert circuit.reason == "w.test has a private address; see push.allow_hosts"
    assert worker.received == []


async def test_a_token_that_does_not_open_is_a_reason_to_wait(
    pushing: World, worker: PushWorker
) -> None:
    def broken(_: str, __: str) -> str:
        raise PushTokenUnreadable("the push token was sealed with another key: set it again")

    hosts = HostPolicy("", [LOOPBACK])
    async with outbox_of(pushing, BREAKING, HttpDispatcher(5, hosts, broken)):
        await pushing.create()
        await pushing.create()
        [circuit] = await until(pushing.raw_store.list_circuits)

    assert "set it again" in circuit.reason
    assert worker.received == []
