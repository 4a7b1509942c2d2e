"""Why a command waits: a real server, a real agent, and a sender that is told as it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import yaml

from arc_client import Client, Command, ProgressCallbacks
from arc_protocol.messages.commands import CommandStatus
from arc_protocol.messages.waiting import Waiting
from arc_runtime.control_socket import NotListening, ask
from tests.support.raw_sender import DEPLOYMENT
from tests.support.shell import arc
from tests.support.waiting import Changes, until
from tests.support.world import World

SILENT_SECONDS = 1.0
SERVER = {"agents": {"silent_seconds": SILENT_SECONDS}}
BUSY_POLLS = {"poll": {"wait_seconds": 0.3}}
"""An agent that gives a sign of life more often than a silent one would."""


class Told(ProgressCallbacks):
    """Keeps the reasons that a sender is told."""

    def __init__(self) -> None:
        self.reasons: list[str | None] = []
        self.latest: Waiting | None = None
        self._changes = Changes()

    def on_waiting(self, status: CommandStatus) -> None:
        self.latest = status.waiting
        self.reasons.append(None if status.waiting is None else status.waiting.reason)
        self._changes.notify()

    async def until(self, reason: str | None) -> Waiting | None:
        """Wait until this reason is the latest."""
        await self._changes.until(lambda: bool(self.reasons) and self.reasons[-1] == reason)
        return self.latest


@asynccontextmanager
async def sender(world: World) -> AsyncIterator[tuple[Told, Command, asyncio.Task[Any]]]:
    """A sender that has sent a command and waits for its result."""
    told = Told()
    token = world.tokens["admin"]
    async with Client(world.url, token_file=token, callbacks=told) as client:
        command = await client.send(DEPLOYMENT, "count", {"n": 1})
        result = asyncio.ensure_future(command.result(timeout=60))
        try:
            yield told, command, result
        finally:
            result.cancel()
            await asyncio.gather(result, return_exceptions=True)


async def operator(world: World, agent: str, do: str, **request: Any) -> dict[str, Any]:
    """Return what a person on the host asks of an agent, once it listens."""
    path = world.directory / agent / "control.sock"

    async def answer() -> dict[str, Any] | None:
        with suppress(NotListening):
            return await asyncio.to_thread(ask, path, {"do": do, **request})
        return None

    return await until(answer)


async def agents(world: World, *options: str) -> list[dict[str, Any]]:
    """The agents that `arc agents` lists."""
    listed = await arc(
        *("agents", "--json", *options),
        *("--token-file", world.tokens["admin"]),
        url=world.url,
    )
    assert listed.code == 0, listed.err
    return listed.json()


async def test_an_approval_that_is_missing_is_told_with_its_host_and_its_end(world: World) -> None:
    policy = world.directory / "policy.yaml"
    rule = {"name": "ask", "commands": ["count"], "action": "approve"}
    policy.write_text(yaml.safe_dump({"rules": [rule]}))
    await world.server(SERVER)
    await world.agent("host-a", lease_seconds=60, config={"policy": {"file": str(policy)}})

    async with sender(world) as (told, command, result):
        found = await told.until("approval")
        await operator(world, "host-a", "approve", id=command.id)
        assert (await result)["n"] == 1

    assert found is not None
    assert found.hostname
    assert found.until is not None
    assert found.until > found.now


async def test_a_paused_agent_is_told_with_its_note_until_it_resumes(world: World) -> None:
    await world.server(SERVER)
    await world.agent("host-a", config=BUSY_POLLS)
    await operator(world, "host-a", "pause", note="new disk", seconds=600)

    async with sender(world) as (told, _, result):
        found = await told.until("paused")
        await operator(world, "host-a", "resume")
        assert (await result)["n"] == 1

    assert found is not None
    assert (found.note, found.is_absent) == ("new disk", None)
    assert found.until is not None


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_an_agent_without_a_sign_of_life_is_told_until_it_gives_one(
    world: World, how: str
) -> None:
    await world.server(SERVER)
    agent = await world.agent("host-a", config=BUSY_POLLS)
    await until(lambda: agents(world))
    agent.pause() if how == "frozen" else agent.kill()

    async with sender(world) as (told, _, result):
        found = await told.until("silent")
        (listed,) = await agents(world)
        if how == "frozen":
            agent.resume()
        else:
            await world.agent("host-a", config=BUSY_POLLS)
        assert (await result)["n"] == 1

    assert found is not None
    assert found.hostname == listed["hostname"]
    assert found.since is not None
    assert (found.now - found.since).total_seconds() >= SILENT_SECONDS
    assert listed["isGone"]


async def test_an_agent_that_was_never_seen_is_told_at_once_by_a_young_server(
    world: World,
) -> None:
    await world.server()

    async with sender(world) as (told, _, result):
        found = await told.until("never_seen")
        await world.agent("host-a")
        assert (await result)["n"] == 1

    assert found is not None
    assert found.is_absent is None


async def test_an_agent_that_said_goodbye_is_gone_and_its_next_start_takes_its_place(
    world: World,
) -> None:
    await world.server()
    agent = await world.agent("host-a")
    await until(lambda: agents(world))
    agent.terminate()
    assert await agent.ended() == 0

    async with sender(world) as (told, _, result):
        found = await told.until("gone")
        (gone,) = await agents(world)
        await world.agent("host-a")
        assert (await result)["n"] == 1

    (here,) = await agents(world)
    every = {each["agentId"]: each.get("isGone", False) for each in await agents(world, "--all")}
    assert found is not None
    assert found.hostname == gone["hostname"]
    assert gone["isGone"]
    assert every == {gone["agentId"]: True, here["agentId"]: False}
