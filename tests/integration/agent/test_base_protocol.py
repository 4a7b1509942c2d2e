"""The agent against servers that know the base protocol only (docs/protocol.md, Receivers)."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from arc_agent import handler
from tests.support.base_protocol_server import BaseProtocolServer
from tests.support.running_agent import Start, running
from tests.support.scripted_server import ScriptedServer, inline


@pytest.mark.parametrize("era", [1, 3])
async def test_a_command_of_a_public_server_is_run(era: Any, tmp_path: Path) -> None:
    large = json.dumps("x" * 400_000).encode()
    async with BaseProtocolServer(era=era, token="secret") as server:
        target = {"resource_id": "default", "resource_type": "daemon"} if era == 3 else None
        settings: dict[str, Any] = {
            "server": {"token": "secret"},
            "deployment": "dep",
            **({"target": target} if target else {}),
        }
        small = server.send("arc.echo", b'{"a":1}')
        big = server.send("arc.echo", large)
        unknown = server.send("nope")
        async with running(server.url, tmp_path, (), settings):
            await server.until(
                lambda: all(server.command(each).is_terminal for each in (small, big, unknown))
            )

        assert server.command(small).state == "SUCCEEDED"
        assert server.command(big).state == "SUCCEEDED"
        assert server.command(unknown).state == "FAILED"
        assert inline(server.command(small).response) == b'{"a":1}'
        uploaded = server.seen("put_blob")
        assert [request.body for request in uploaded] == [large]


async def test_a_server_without_long_poll_is_asked_in_growing_intervals(
    old_server: ScriptedServer, start: Start, logged: list[dict[str, Any]]
) -> None:
    await start(
        old_server, poll={"interval_seconds": 0.1, "max_interval_seconds": 0.4, "jitter": 0}
    )
    await old_server.until(lambda: len(old_server.seen("leases")) >= 7)

    # the first request does not ask the server to wait: what follows shows that it does not
    times = [request.at for request in old_server.seen("leases")[1:]]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert gaps[0] >= 0.09
    assert gaps[1] >= 0.19
    assert gaps[2] >= 0.39
    assert gaps[4] >= 0.39
    assert [e["event"] for e in logged].count("poll.in_intervals") == 1


async def test_a_lease_is_followed_by_the_next_request_at_once(
    old_server: ScriptedServer, start: Start
) -> None:
    for _ in range(6):
        old_server.send("arc.ping")
    await start(
        old_server, max_concurrent=1, poll={"interval_seconds": 60, "max_interval_seconds": 60}
    )
    await old_server.response(6)


async def test_a_server_that_learns_to_wait_is_asked_to(
    old_server: ScriptedServer, start: Start, logged: list[dict[str, Any]]
) -> None:
    await start(old_server, poll={"wait_seconds": 0.4})
    await old_server.until(lambda: len(old_server.seen("leases")) >= 3)
    old_server.knows_extensions = True
    before = len(old_server.seen("leases"))
    await old_server.until(lambda: len(old_server.seen("leases")) >= before + 3)

    assert "poll.waits" in [event["event"] for event in logged]


async def test_renewal_and_registration_are_asked_for_once(
    old_server: ScriptedServer, start: Start, logged: list[dict[str, Any]]
) -> None:
    gate = asyncio.Event()

    @handler("wait")
    async def wait() -> str:
        await gate.wait()
        return "done"

    agent = await start(old_server, wait, lease={"seconds": 30}, renew={"at_most_seconds": 0.05})
    old_server.send("wait")
    await old_server.until(lambda: bool(old_server.seen("renew")))
    polls = len(old_server.seen("leases"))
    await old_server.until(lambda: len(old_server.seen("leases")) >= polls + 3)
    gate.set()
    await old_server.response()
    await agent.stop()

    assert len(old_server.seen("renew")) == 1
    assert len(old_server.seen("agents")) == 1
    lacks = [event["extension"] for event in logged if event["event"] == "server.lacks"]
    assert sorted(lacks) == ["agents", "renewal"]


async def test_a_lease_that_cannot_be_renewed_bounds_the_handler(
    old_server: ScriptedServer, start: Start
) -> None:
    left: list[float] = []

    @handler("slow")
    async def slow(ctx: Any) -> None:
        left.append(ctx.remaining())
        await asyncio.sleep(60)

    old_server.lease_seconds = 6
    await start(old_server, slow, lease={"seconds": 6}, renew={"at_most_seconds": 0.05})
    old_server.send("slow")

    assert (await old_server.response())["code"] == "HANDLER_TIMEOUT"
    asked = old_server.seen("leases")
    answered = old_server.seen("response")[0].at - asked[0].at
    assert 0.9 <= answered <= 3  # lease − 5 s


async def test_the_variables_of_public_receivers_are_read(tmp_path: Path) -> None:
    from arc_agent.agent import Agent
    from arc_agent.work.live_config import LiveConfig, Source

    async with BaseProtocolServer(era=3, token="secret") as server:
        (tmp_path / "token").write_text("secret\n")
        environ = {
            "ALIEN_COMMANDS_URL": server.url + "/",
            "ALIEN_COMMANDS_TOKEN_FILE": str(tmp_path / "token"),
            "ALIEN_DEPLOYMENT_ID": "dep",
            "ALIEN_COMMANDS_TARGET_RESOURCE_ID": "default",
            "ALIEN_COMMANDS_TARGET_RESOURCE_TYPE": "daemon",
            "ALIEN_COMMANDS_POLL_INTERVAL_MS": "50",
            "ARC_AGENT_DATA_DIR": str(tmp_path / "agent"),
        }
        command = server.send("arc.ping")
        agent = Agent(LiveConfig(Source(file=None, environ=environ, overrides={})))
        task = asyncio.create_task(agent.run(handles_signals=False))
        await server.until(lambda: server.command(command).is_terminal)
        agent.stop()
        assert await task == 0

        lease = server.seen("lease")[0].json()
        assert lease["target"] == {"resourceId": "default", "resourceType": "daemon"}
        assert lease["maxLeases"] == 4
