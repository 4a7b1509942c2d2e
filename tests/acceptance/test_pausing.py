"""A pause reaches senders at once, also while the server holds the agent's poll."""

from __future__ import annotations

import asyncio
from typing import Any

from arc_runtime.control_socket import ask
from tests.support.waiting import until
from tests.support.world import World

HELD_SECONDS = 60
"""A poll is held for longer than the test waits: what it shows does not come with the next poll."""


async def status_of(world: World, name: str) -> dict[str, Any]:
    """The status of an agent as senders see it; empty when all is well."""
    listed = await world.sender.call("GET", "/agents")
    statuses = [each.get("status") for each in listed["agents"] if each["agentId"].startswith(name)]
    return (statuses[0] if statuses else None) or {}


async def order(world: World, do: str, **more: Any) -> dict[str, Any]:
    """Give the agent an order, as the command line does."""
    path = world.directory / "one" / "control.sock"
    return await asyncio.to_thread(ask, path, {"do": do, **more})


async def test_senders_see_a_pause_and_its_end_while_the_agents_poll_is_held(world: World):
    await world.server()
    await world.agent("one", config={"poll": {"wait_seconds": HELD_SECONDS}})
    await world.sender.result(await world.sender.create("note"))  # contact, and a poll after it

    await order(world, "pause", note="new disk", seconds=3600)
    paused = await until(lambda: status_of(world, "one"))
    await order(world, "resume")

    assert (paused["state"], paused["note"]) == ("paused", "new disk")
    assert "until" in paused

    async def is_over() -> bool:
        return not await status_of(world, "one")

    await until(is_over)


async def test_the_last_of_several_orders_is_what_senders_see(world: World):
    await world.server()
    await world.agent("one", config={"poll": {"wait_seconds": HELD_SECONDS}})
    await world.sender.result(await world.sender.create("note"))

    for number in range(20):
        await order(world, "pause", note=f"order {number}")
        await order(world, "resume")
    await order(world, "stop-all", note="the last")

    async def is_last() -> bool:
        return (await status_of(world, "one")).get("note") == "the last"

    await until(is_last)
