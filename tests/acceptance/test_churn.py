"""Agents come and go, stopped and killed, and every command has exactly one result."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import pytest

from tests.support.waiting import until
from tests.support.world import World

LENGTHS = [
    pytest.param(600, 4, id="4-stops"),
    pytest.param(2_000, 10, id="10-stops", marks=pytest.mark.chaos),
]
"""The number of commands, and of stops of an agent, every other one a kill."""
AT_A_TIME = 32

T = TypeVar("T")


async def in_parallel(work: Callable[[T], Awaitable[None]], items: Iterable[T]) -> None:
    """Work through the items, some at a time."""
    left = iter(items)

    async def loop() -> None:
        for item in left:
            await work(item)

    await asyncio.gather(*(loop() for _ in range(AT_A_TIME)))


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("commands", "stops"), LENGTHS)
async def test_every_command_has_exactly_one_result_while_agents_are_stopped_and_started(
    world: World, commands: int, stops: int
):
    await world.server()
    numbers: dict[str, int] = {}

    async def create(number: int) -> None:
        command_id = await world.sender.create("count", {"n": number}, maxAttempts=100)
        numbers[command_id] = number

    await in_parallel(create, range(commands))
    several = {"max_concurrent": 8}
    agents = [await world.agent(f"agent-{n}", lease_seconds=2, config=several) for n in (0, 1)]

    for stop in range(stops):
        finished = commands * (stop + 1) // (stops + 2)
        await until(lambda enough=finished: world.count_finished() >= enough, 60)
        which = stop // 2 % 2
        if stop % 2:
            await agents[which].logged("ready", 30)
            agents[which].terminate()
            assert await agents[which].ended() == 0
        else:
            agents[which].kill()
            await agents[which].ended()
        agents[which] = await world.agent(
            f"agent-{which}", lease_seconds=2, config=several, is_awaited=False
        )

    results: dict[str, bytes] = {}

    async def take(command_id: str) -> None:
        status = await world.sender.result(command_id, 60)
        assert status["state"] == "SUCCEEDED", status
        results[command_id] = await world.sender.body(status["response"]["response"])

    await in_parallel(take, numbers)
    for agent in agents:
        await agent.logged("ready", 30)  # the last start may be under way still
        agent.terminate()
    assert [await agent.ended() for agent in agents] == [0, 0]
    once, results = results, {}
    await in_parallel(take, numbers)

    assert results == once
    assert len(await world.sender.commands()) == commands
    runs = {run["run"]: run for run in world.runs()}
    for command_id, body in results.items():
        answer = json.loads(body)
        assert answer["n"] == numbers[command_id]
        assert runs[answer["run"]]["command_id"] == command_id
    repeated = len(runs) - commands
    print(f"{commands} commands, {stops} stops, {repeated} runs repeated after a kill")
