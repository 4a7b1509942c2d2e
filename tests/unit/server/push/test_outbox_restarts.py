"""Push outlives restarts, failures of the store and its own bounds."""

from __future__ import annotations

import asyncio

import pytest

from arc_protocol import lifecycle
from arc_protocol.errors import InvalidCommand, KvOperationFailed, StoreUnavailable
from arc_protocol.messages.base import State
from arc_protocol.messages.leases import Envelope
from arc_server.ports.records import Deployment, PushOutcome
from arc_server.push.null import NullDispatcher
from arc_server.push.outbox import PushLimits
from tests.support.outbox import ACCEPTED, POSTPONED, QUICK, REJECTED, Scripted, lease_in, outbox_of
from tests.support.push_target import PushWorker
from tests.support.service_fakes import Gate
from tests.support.service_world import World
from tests.support.waiting import until


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
async def test_the_loop_outlives_failures_of_the_store(
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


async def test_a_command_that_expired_before_it_was_due_is_not_sent(world: World) -> None:
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
