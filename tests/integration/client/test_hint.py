"""Why nobody takes a command: told to who waits for it, if it can be known."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from arc_client import Client
from arc_client.bodies.params import Body
from arc_client.cli import invoke
from arc_client.cli.progress import CommandProgress
from tests.support.fake_server import FakeServer, agent, echo, one_kind
from tests.support.shell import arc


class Noting(CommandProgress):
    """Keeps what it is told to note."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def show_message(self, text: str) -> None:
        """Keep it."""
        self.notes.append(text)


async def invoked(server: FakeServer, until: Any) -> list[str]:
    """Invoke what has no handler, let one appear once `until` is so; what was noted meanwhile."""
    progress = Noting()
    params = Body(b"7", size=1)
    whom = invoke.Addressee("dep", "late", None)
    async with Client(server.url, callbacks=progress) as client:
        waiting = asyncio.ensure_future(
            invoke.invoke(client, progress, whom, params, {}, timeout=30, out=None)
        )
        await server.until(until)
        while not progress.notes and not server.faults.get("agents") and server.knows_extensions:
            await asyncio.sleep(0)
        server.handlers["late"] = echo
        server.run("cmd_1")
        await waiting
    return progress.notes


async def test_who_waits_for_nobody_is_told_so(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(invoke, "HINT_SECONDS", 0.05)
    server.agents = [agent("a1", "other")]

    notes = await invoked(server, lambda: server.count("GET", "/v1/agents") > 0)

    expected = (
        ["still waiting: no agent of dep has been seen yet"] if server.knows_extensions else []
    )
    assert notes == expected
    assert capfd.readouterr().out == "7\n"


WATCHED = {"now": "2026-11-24T20:00:00Z", "watchedSince": "2026-11-23T20:00:00Z"}
"""A server that would know. The agents of the fake were last seen a day before."""


@one_kind
async def test_a_command_for_a_host_that_is_not_there_is_cancelled_and_says_since_when(
    server: FakeServer,
) -> None:
    server.agents, server.presence = [agent("a1", "dep")], WATCHED

    for_people = await arc("invoke", "dep", "late", "--timeout", "30s", url=server.url)
    for_programs = await arc("invoke", "dep", "late", "--json", url=server.url)

    assert (for_people.code, for_people.out) == (6, b"")
    assert "the agent of dep on host-1 was last seen 1d ago" in for_people.err
    assert "--wait-for-agent" in for_people.err
    assert for_programs.code == 6
    assert json.loads(for_programs.err.splitlines()[-1])["code"] == "AGENT_ABSENT"
    assert {each.state for each in server.commands.values()} == {"FAILED"}


@one_kind
async def test_a_host_that_was_never_there_is_said_to_be_so(server: FakeServer) -> None:
    server.presence = WATCHED

    ended = await arc("invoke", "dep", "late", url=server.url)

    assert ended.code == 6
    assert "no agent of dep has been seen yet" in ended.err


@one_kind
@pytest.mark.parametrize(
    ("options", "presence"),
    [
        (("--wait-for-agent",), WATCHED),
        ((), None),
        ((), WATCHED | {"isPushed": True}),
        ((), WATCHED | {"polledAt": "2026-11-24T19:55:00Z"}),
        ((), WATCHED | {"watchedSince": "2026-11-24T19:58:00Z"}),
    ],
    ids=["asked to", "a server that does not know", "pushed", "polled", "just started"],
)
async def test_who_asks_to_or_cannot_be_sure_waits_for_the_host(
    server: FakeServer, options: tuple[str, ...], presence: dict[str, Any] | None
) -> None:
    server.agents, server.presence = [agent("a1", "dep")], presence
    running = asyncio.ensure_future(
        arc("invoke", "dep", "late", "--timeout", "30s", *options, url=server.url)
    )
    await server.until(lambda: server.count("GET", "/v1/agents") > 0)
    server.handlers["late"] = echo
    server.run("cmd_1")

    ended = await running

    assert (ended.code, ended.out) == (0, b"{}\n")


@one_kind
async def test_who_waits_for_the_host_is_told_that_it_is_not_there(server: FakeServer) -> None:
    server.agents, server.presence = [agent("a1", "dep")], WATCHED

    ended = await arc(
        "invoke", "dep", "late", "--wait-for-agent", "--timeout", "1s", url=server.url
    )

    assert ended.code == 5
    assert "still waiting: the agent of dep on host-1 was last seen 1d ago" in ended.err
    assert server.commands["cmd_1"].state == "PENDING"


@one_kind
async def test_the_command_of_an_earlier_sender_is_not_cancelled(server: FakeServer) -> None:
    server.agents, server.presence = [agent("a1", "dep")], WATCHED
    await arc("invoke", "dep", "late", "--key", "k", "--no-wait", url=server.url)

    ended = await arc("invoke", "dep", "late", "--key", "k", "--timeout", "1s", url=server.url)

    assert ended.code == 5
    assert "was last seen 1d ago" in ended.err
    assert server.commands["cmd_1"].state == "PENDING"


@one_kind
async def test_a_command_that_is_taken_at_once_costs_no_look(server: FakeServer) -> None:
    server.presence = WATCHED

    ended = await arc("invoke", "dep", "echo", url=server.url)

    assert ended.code == 0
    assert server.count("GET", "/v1/agents") == 0
