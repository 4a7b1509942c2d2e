"""A holder keeps a command while it runs, and loses it soon after it was killed."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import pytest

from tests.support.world import World

LEASE_SECONDS = 2


async def test_a_handler_that_takes_three_lease_durations_runs_once(world: World):
    await world.server()
    await world.agent("one", lease_seconds=LEASE_SECONDS)
    await world.agent("two", lease_seconds=LEASE_SECONDS)

    begun = time.monotonic()
    command_id = await world.sender.create("sleep", {"seconds": 3 * LEASE_SECONDS})
    status = await world.sender.result(command_id)

    assert time.monotonic() - begun >= 3 * LEASE_SECONDS
    assert (status["state"], status["attempt"]) == ("SUCCEEDED", 1)
    assert len(world.runs(command_id)) == 1


async def test_a_killed_agents_command_is_with_another_within_its_lease_and_two_seconds(
    world: World,
):
    await world.server()
    first = await world.agent("first", lease_seconds=LEASE_SECONDS)
    command_id = await world.sender.create("hold", {"gate": "never"})
    await world.noted(command_id)
    await world.agent("second", lease_seconds=LEASE_SECONDS)

    killed_at = time.time()
    first.kill()
    again = await world.noted(command_id, times=2, seconds=LEASE_SECONDS + 10)

    assert (again["agent"], again["attempt"]) == ("second", 2)
    assert again["at"] - killed_at <= LEASE_SECONDS + 2


async def test_a_handler_that_blocks_the_event_loop_keeps_its_lease_and_the_others_theirs(
    world: World,
):
    await world.server()
    await world.agent("busy", lease_seconds=LEASE_SECONDS)
    beside = await world.sender.create("hold", {"gate": "beside"})
    await world.noted(beside)
    blocking = await world.sender.create("block", {"seconds": 2 * LEASE_SECONDS})
    await world.noted(blocking)
    await world.agent("idle", lease_seconds=LEASE_SECONDS)

    blocked = await world.sender.result(blocking)
    world.open_gate("beside")
    held = await world.sender.result(beside)

    for command_id, status in ((blocking, blocked), (beside, held)):
        assert (status["state"], status["attempt"]) == ("SUCCEEDED", 1)
        assert [run["agent"] for run in world.runs(command_id)] == ["busy"]


async def test_handlers_that_starve_the_interpreter_keep_their_leases_and_the_others_theirs(
    world: World,
):
    await world.server()
    await world.agent("busy", lease_seconds=LEASE_SECONDS, config={"max_concurrent": 8})
    beside = await world.sender.create("hold", {"gate": "beside"})
    await world.noted(beside)
    starving = [await world.sender.create("spin", {"seconds": 2 * LEASE_SECONDS}) for _ in range(6)]
    for command_id in starving:
        await world.noted(command_id)
    await world.agent("idle", lease_seconds=LEASE_SECONDS)

    ended = [await world.sender.result(command_id) for command_id in starving]
    world.open_gate("beside")
    ended.append(await world.sender.result(beside))

    for status in ended:
        assert (status["state"], status["attempt"]) == ("SUCCEEDED", 1)
        assert [run["agent"] for run in world.runs(status["commandId"])] == ["busy"]


async def test_a_command_that_kills_its_agent_each_time_ends_after_its_last_attempt(world: World):
    await world.server()
    command_id = await world.sender.create("die", {"code": 3}, maxAttempts=2)

    for _ in range(2):
        agent = await world.agent("agent", lease_seconds=1, is_awaited=False)
        assert await agent.ended() == 3
    status = await world.sender.result(command_id)

    assert (status["state"], status["attempt"]) == ("FAILED", 2)
    assert status["response"]["code"] == "MAX_ATTEMPTS_EXCEEDED"
    assert [run["attempt"] for run in world.runs(command_id)] == [1, 2]


async def test_a_poll_whose_client_has_gone_leases_nothing(world: World):
    await world.server()
    proxy = await world.proxy()
    gone = world.sender.through(proxy.url)
    waiting = asyncio.create_task(gone.lease(wait_seconds=30))
    await proxy.passed(b"/commands/leases")
    await proxy.cut()
    with pytest.raises(aiohttp.ClientError):
        await waiting

    command_id = await world.sender.create("anything")
    leases = await world.sender.lease(wait_seconds=10)

    assert [(lease["commandId"], lease["attempt"]) for lease in leases] == [(command_id, 1)]


async def test_a_cancelled_handler_stops_and_the_sender_learns_that_it_did(world: World):
    await world.server()
    await world.agent("agent")
    command_id = await world.sender.create("hold", {"gate": "never"})
    await world.noted(command_id)

    await world.sender.call("POST", f"/commands/{command_id}/cancel")
    status = await world.sender.result(command_id)

    assert (status["state"], status["response"]["code"]) == ("FAILED", "CANCELLED")
    assert len(world.runs(command_id, what="cancelled")) == 1
