"""The library on a host that is not there: it waits, or gives up if it is asked to."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from arc_client import AgentAbsent, Client, CommandTimeout, SyncClient
from tests.support.fake_server import FakeServer, one_kind

ABSENT = {
    "reason": "silent",
    "hostname": "host-1",
    "since": "2026-11-23T20:00:00Z",
    "isAbsent": True,
}


@one_kind
@pytest.mark.parametrize("to_file", [True, False])
async def test_it_gives_up_on_a_host_that_is_not_there(
    server: FakeServer, tmp_path: Path, to_file: bool
) -> None:
    server.waiting = ABSENT
    async with Client(server.url) as arc:
        if to_file:
            invoking = arc.invoke_to_file(tmp_path / "f", "dep", "late", wait_for_agent=False)
        else:
            invoking = arc.invoke("dep", "late", wait_for_agent=False)
        with pytest.raises(AgentAbsent, match="no sign of life from the agent on host-1") as raised:
            await invoking

    assert (raised.value.code, raised.value.command_id) == ("AGENT_ABSENT", "cmd_1")
    assert server.commands["cmd_1"].state == "FAILED"


@one_kind
async def test_the_sync_client_gives_up_too(server: FakeServer) -> None:
    server.waiting = ABSENT

    def invoke() -> None:
        with SyncClient(server.url) as arc:
            arc.invoke("dep", "late", wait_for_agent=False)

    with pytest.raises(AgentAbsent):
        await asyncio.to_thread(invoke)


@one_kind
async def test_it_waits_for_a_host_that_is_not_there_unless_told_otherwise(
    server: FakeServer,
) -> None:
    server.waiting = ABSENT
    async with Client(server.url) as arc:
        with pytest.raises(CommandTimeout, match="no sign of life"):
            await arc.invoke("dep", "late", timeout=0.3)

    assert server.commands["cmd_1"].state == "PENDING"


@pytest.mark.parametrize(
    "waiting", [None, {"reason": "never_seen"}, {"reason": "paused", "hostname": "host-1"}]
)
async def test_it_gives_up_only_when_that_is_certain(
    server: FakeServer, waiting: dict[str, str] | None
) -> None:
    server.waiting = waiting
    async with Client(server.url) as arc:
        with pytest.raises(CommandTimeout):
            await arc.invoke("dep", "late", timeout=0.3, wait_for_agent=False)

    assert server.commands["cmd_1"].state == "PENDING"


@one_kind
async def test_a_command_that_an_earlier_call_made_is_not_cancelled(server: FakeServer) -> None:
    server.waiting = ABSENT
    async with Client(server.url) as arc:
        for waits in (True, False):
            with pytest.raises(CommandTimeout):
                await arc.invoke(
                    "dep", "late", idempotency_key="k", timeout=0.3, wait_for_agent=waits
                )

    assert {key: each.state for key, each in server.commands.items()} == {"cmd_1": "PENDING"}
