"""Push: what is owed is sent, until it is taken, refused or out of time."""

from __future__ import annotations

import asyncio
import socket

import pytest

from arc_protocol import lifecycle
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import StorageBody, SuccessResponse
from arc_protocol.messages.leases import Envelope
from arc_server.ports.records import Deployment, PushOutcome
from arc_server.push.outbox import PushLimits
from tests.support.outbox import QUICK, code_of, end_of, lease_in, outbox_of
from tests.support.push_target import PushWorker, local_dispatcher, silent_listener
from tests.support.service_fakes import Gate
from tests.support.service_world import BASE, World, inline_of, path_of, success
from tests.support.waiting import until

DEFINITE = (400, 401, 403, 404, 409, 413, 415, 422)
PASSING = (200, 201, 204, 302, 307, 408, 410, 418, 425, 429, 500, 501, 502, 503, 504)


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


async def test_without_a_push_url_a_command_is_not_sent(world: World) -> None:
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
