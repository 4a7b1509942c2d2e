"""A receiver of pushes that is away gets a pause, and its commands keep their attempts."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import pytest

from arc_protocol.messages.base import State
from arc_protocol.messages.leases import Envelope
from arc_runtime.network.allowed_hosts import HostPolicy
from arc_server.ports.records import Deployment
from arc_server.push.http import HttpDispatcher
from arc_server.push.outbox import PushLimits
from arc_server.push.push_tokens import PushTokenUnreadable
from tests.support.outbox import end_of, outbox_of
from tests.support.push_target import LOOPBACK, PushWorker, local_dispatcher
from tests.support.service_world import World
from tests.support.waiting import until

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
