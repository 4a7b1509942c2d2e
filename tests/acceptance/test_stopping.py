"""SIGTERM loses nothing that was finished or acknowledged, and repeats nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable

import aiohttp

from tests.support.raw_sender import Refused, Sender, success
from tests.support.waiting import until
from tests.support.world import World

LEASE_SECONDS = 2


async def test_an_agent_told_to_stop_submits_what_is_finished_and_releases_the_rest(world: World):
    await world.server()
    drains = {"drain": {"seconds": 3}}
    first = await world.agent("first", lease_seconds=LEASE_SECONDS, config=drains)
    finishing = await world.sender.create("hold", {"gate": "finishing"})
    unfinished = await world.sender.create("hold", {"gate": "unfinished"})
    await world.noted(finishing)
    await world.noted(unfinished)

    first.terminate()
    await first.logged("stopping")
    waiting = await world.sender.create("hold", {"gate": "unfinished"})
    world.open_gate("finishing")
    finished = await world.sender.result(finishing)
    assert await first.ended() == 0

    assert (finished["state"], finished["attempt"]) == ("SUCCEEDED", 1)
    released = await world.sender.status(unfinished)
    assert (released["state"], released["attempt"]) == ("PENDING", 1)
    assert len(world.runs(unfinished, what="cancelled")) == 1

    await world.agent("second", lease_seconds=LEASE_SECONDS)
    world.open_gate("unfinished")
    for command_id, agents in ((unfinished, ["first", "second"]), (waiting, ["second"])):
        status = await world.sender.result(command_id)
        assert (status["state"], status["attempt"]) == ("SUCCEEDED", 1)
        assert [run["agent"] for run in world.runs(command_id)] == agents


async def test_an_agent_whose_handler_ignores_its_cancellation_stops_all_the_same(world: World):
    await world.server()
    patience = {"drain": {"seconds": 0.5}, "handlers": {"grace_seconds": 0.5}}
    agent = await world.agent("agent", lease_seconds=LEASE_SECONDS, config=patience)
    command_id = await world.sender.create("stubborn", {"seconds": 600})
    await world.noted(command_id)

    agent.terminate()
    assert await agent.ended(20) == 0

    released = await world.sender.status(command_id)
    assert (released["state"], released["attempt"]) == ("PENDING", 1)
    assert len(world.runs(command_id, what="cancelled")) >= 1


async def test_a_second_signal_ends_an_agent_at_once(world: World):
    await world.server()
    agent = await world.agent("agent", config={"drain": {"seconds": 600}})
    command_id = await world.sender.create("hold", {"gate": "never"})
    await world.noted(command_id)

    agent.terminate()
    await agent.logged("stopping")
    agent.terminate()

    assert await agent.ended(10) != 0


class Load:
    """Creates, leases and responses at full speed; what was acknowledged is remembered."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._numbers = itertools.count()
        self.created: dict[str, bytes] = {}
        self.leased: set[str] = set()
        self.answered: dict[str, bytes] = {}

    async def run(self) -> None:
        """Go on until the server is gone."""
        await asyncio.gather(
            *(self._until_gone(self._create) for _ in range(8)),
            *(self._until_gone(self._hold) for _ in range(8)),
        )

    async def _until_gone(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except aiohttp.ClientError:
                return
            except Refused as refused:
                if refused.status != 503:
                    raise
                return

    async def _create(self) -> None:
        params = json.dumps({"n": next(self._numbers)}).encode()
        self.created[await self._sender.create("load", params)] = params

    async def _hold(self) -> None:
        for lease in await self._sender.lease(wait_seconds=1, max_leases=4):
            self.leased.add(lease["commandId"])
            body = json.dumps({"answer to": lease["commandId"]}).encode()
            await self._sender.respond(lease, success(body))
            self.answered[lease["commandId"]] = body


async def test_a_server_told_to_stop_under_load_keeps_all_that_it_acknowledged(world: World):
    server = await world.server()
    load = Load(world.sender)
    waiting_for_work = asyncio.create_task(
        world.sender.lease(wait_seconds=60, deploymentId="nothing-here")
    )
    nobody_runs_it = await world.sender.create("idle", deploymentId="nobody-here")
    waiting_for_result = asyncio.create_task(world.sender.status(nobody_runs_it, 60))
    loading = asyncio.create_task(load.run())
    await until(lambda: len(load.answered) >= 300)

    server.terminate()
    assert await waiting_for_work == []
    assert (await waiting_for_result)["state"] == "PENDING"
    await loading
    assert await server.ended() == 0

    await world.server()
    listed = {status["commandId"]: status for status in await world.sender.commands(command="load")}
    assert load.created.keys() <= listed.keys()
    for command_id, status in listed.items():
        stored = await world.sender.call("GET", f"/commands/{command_id}/payload")
        if command_id in load.created:
            assert await world.sender.body(stored["params"]) == load.created[command_id]
        if command_id in load.answered:
            assert status["state"] == "SUCCEEDED"
            answer = await world.sender.body(stored["response"]["response"])
            assert answer == load.answered[command_id]
        elif command_id in load.leased:
            assert status["state"] in ("DISPATCHED", "SUCCEEDED")
    assert (await world.sender.status(nobody_runs_it))["state"] == "PENDING"
