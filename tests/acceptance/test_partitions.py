"""The network loses replies: the request has arrived, and its client cannot know."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.support.waiting import until
from tests.support.world import World

LEASE_SECONDS = 2


async def test_a_create_whose_reply_is_lost_is_repeated_with_its_key_and_makes_one_command(
    world: World,
):
    await world.server()
    proxy = await world.proxy()
    away = world.sender.through(proxy.url)
    loss = proxy.lose_reply(b"POST /v1/commands ")

    with pytest.raises(aiohttp.ClientError):
        await away.create("report", {"n": 1}, idempotencyKey="key")
    [arrived] = await world.sender.commands()
    command_id = await away.create("report", {"n": 1}, idempotencyKey="key")

    assert loss.lost == 1
    assert command_id == arrived["commandId"]
    assert len(await world.sender.commands()) == 1


async def test_a_lease_whose_reply_is_lost_lapses_and_is_handed_out_again(world: World):
    await world.server()
    proxy = await world.proxy()
    loss = proxy.lose_reply(b"POST /v1/commands/leases ")
    command_id = await world.sender.create("count", {"n": 1})

    await world.agent("agent", url=proxy.url, lease_seconds=1, is_awaited=False)
    status = await world.sender.result(command_id)

    assert loss.lost == 1
    assert (status["state"], status["attempt"]) == ("SUCCEEDED", 2)
    assert [run["attempt"] for run in world.runs(command_id)] == [2]


async def test_a_response_whose_reply_is_lost_is_submitted_again_and_accepted_once(world: World):
    await world.server()
    proxy = await world.proxy()
    await world.agent("agent", url=proxy.url)
    loss = proxy.lose_reply(b"/response")
    command_id = await world.sender.create("count", {"n": 1})

    await asyncio.wait_for(loss.happened.wait(), 20)
    lost = await world.sender.result(command_id)
    agent = world.processes[-1]
    await agent.logged("response.delivered", command_id=command_id)

    assert loss.lost == 1
    status = await world.sender.status(command_id)
    assert (status["state"], status["attempt"]) == ("SUCCEEDED", 1)
    assert status["response"] == lost["response"]
    assert len(world.runs(command_id)) == 1


async def test_a_partition_longer_than_the_lease_gives_the_command_to_whoever_is_reachable(
    world: World,
):
    await world.server()
    proxy = await world.proxy()
    away = await world.agent("away", url=proxy.url, lease_seconds=LEASE_SECONDS)
    command_id = await world.sender.create("hold", {"gate": "open"})
    await world.noted(command_id)
    await world.agent("near", lease_seconds=LEASE_SECONDS)

    proxy.blackhole()
    again = await world.noted(command_id, times=2)
    assert (again["agent"], again["attempt"]) == ("near", 2)
    world.open_gate("open", agent="away")
    await until(lambda: world.spooled("away") == [command_id])
    proxy.heal()
    refused = await away.logged("response.too_late", 60, command_id=command_id)
    assert refused["status"] == 409
    assert (await world.sender.status(command_id))["state"] == "DISPATCHED"
    world.open_gate("open", agent="near")
    status = await world.sender.result(command_id)

    assert (status["state"], status["attempt"]) == ("SUCCEEDED", 2)
    assert b'"near"' in await world.sender.body(status["response"]["response"])
    await until(lambda: world.spooled("away") == [])
