"""Why a command waits: shown to the person or the program that waits for it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.fake_server import FakeServer, agent, echo, one_kind
from tests.support.shell import arc, arc_process, terminal

PAUSED = {"reason": "paused", "hostname": "host-1", "note": "new disk"}
ABSENT = {"reason": "silent", "hostname": "host-1", "since": "2026-11-23T20:00:00Z"}
"""Last seen a day before."""


def asked_with(server: FakeServer, tag: str) -> bool:
    """Return True if a status was asked for by a sender that knows this reason."""
    return server.count("GET", f"&waiting={tag}") > 0


async def finish(server: FakeServer) -> None:
    """Let the first command run after all."""
    server.handlers["late"] = echo
    server.run("cmd_1")


@one_kind
async def test_each_reason_is_a_line_where_stderr_is_no_terminal(server: FakeServer) -> None:
    server.waiting = PAUSED
    running = asyncio.ensure_future(arc_process("invoke", "dep", "late", url=server.url))
    await server.until(lambda: asked_with(server, "paused-tag"))
    await server.wait_for_reason(reason="approval", hostname="host-1")
    await server.until(lambda: asked_with(server, "approval-tag"))
    await server.wait_for_reason()
    await finish(server)

    ended = await running

    assert (ended.code, ended.out) == (0, b"{}\n")
    assert ended.err.splitlines() == [
        "still waiting: the agent on host-1 is paused (new disk)",
        "still waiting: a person on host-1 has to approve it",
    ]


@one_kind
@pytest.mark.parametrize("how", ["invoke", "wait"])
async def test_a_terminal_shows_the_reason_as_it_changes(server: FakeServer, how: str) -> None:
    server.waiting = PAUSED
    await arc("invoke", "dep", "late", "--key", "k", "--no-wait", url=server.url)
    again = ("invoke", "dep", "late", "--key", "k") if how == "invoke" else ("wait", "cmd_1")

    async with terminal(*again, url=server.url) as tty:
        await tty.until("cmd_1 PENDING: the agent on host-1 is paused (new disk)")
        await server.wait_for_reason(reason="approval", hostname="host-1")
        await tty.until("cmd_1 PENDING: a person on host-1 has to approve it")
        await finish(server)
        assert await tty.end() == 0

    assert "still waiting" not in tty.shown


@one_kind
async def test_a_terminal_leaves_out_the_id_before_it_cuts_the_reason(server: FakeServer) -> None:
    note = "until the new disk is there and has been tested"
    server.waiting = PAUSED | {"note": note}

    async with terminal("invoke", "dep", "late", url=server.url) as tty:
        await tty.until(f" PENDING: the agent on host-1 is paused ({note}) 0:00:0")
        await finish(server)
        assert await tty.end() == 0


async def test_a_server_that_gives_no_reason_is_waited_for_without_one(server: FakeServer) -> None:
    running = asyncio.ensure_future(arc("invoke", "dep", "late", url=server.url))
    await server.until(lambda: server.count("GET", "/v1/commands/cmd_1") > 0)
    await finish(server)

    ended = await running

    assert (ended.code, ended.out, ended.err) == (0, b"{}\n", "")


@one_kind
async def test_a_command_for_a_host_that_is_not_there_is_cancelled_and_says_since_when(
    server: FakeServer,
) -> None:
    server.waiting = ABSENT | {"isAbsent": True}

    for_people = await arc("invoke", "dep", "late", "--timeout", "30s", url=server.url)
    for_programs = await arc("invoke", "dep", "late", "--json", url=server.url)

    assert (for_people.code, for_people.out) == (6, b"")
    assert for_people.err.splitlines()[0] == (
        "error: no sign of life from the agent on host-1 for 1d; command cmd_1 was cancelled"
    )
    assert "--wait-for-agent" in for_people.err
    assert for_programs.code == 6
    assert json.loads(for_programs.err)["code"] == "AGENT_ABSENT"
    assert {each.state for each in server.commands.values()} == {"FAILED"}


@one_kind
async def test_a_command_is_cancelled_once_it_is_certain_that_no_agent_is_there(
    server: FakeServer,
) -> None:
    server.waiting = {"reason": "never_seen"}
    running = asyncio.ensure_future(arc("invoke", "dep", "late", url=server.url))
    await server.until(lambda: asked_with(server, "never_seen-tag"))
    await server.wait_for_reason(reason="silent", isAbsent=True)

    ended = await running

    assert ended.code == 6
    assert "still waiting: no agent of dep has ever been seen" in ended.err


@one_kind
@pytest.mark.parametrize(
    ("options", "waiting"),
    [
        (("--wait-for-agent",), ABSENT | {"isAbsent": True}),
        ((), ABSENT),
        ((), PAUSED),
    ],
    ids=["asked to", "not certain", "paused"],
)
async def test_arc_waits_for_the_host_if_asked_to_or_not_certain(
    server: FakeServer, options: tuple[str, ...], waiting: dict[str, Any]
) -> None:
    server.waiting = waiting
    running = asyncio.ensure_future(
        arc("invoke", "dep", "late", "--timeout", "30s", *options, url=server.url)
    )
    await server.until(lambda: asked_with(server, f"{waiting['reason']}-tag"))
    await finish(server)

    ended = await running

    assert (ended.code, ended.out) == (0, b"{}\n")


@one_kind
async def test_a_wait_for_a_deployment_that_was_never_seen_suggests_the_likely_one(
    server: FakeServer,
) -> None:
    server.waiting = {"reason": "never_seen"}
    server.agents = [agent("a1", "acme-eu-1"), agent("a2", "other")]

    ended = await arc("invoke", "acme-eu-2", "late", "--timeout", "1s", url=server.url)

    assert ended.code == 5
    assert "has ever been seen; it goes on. Did you mean acme-eu-1?" in ended.err


@one_kind
async def test_a_wait_that_runs_out_says_why(server: FakeServer) -> None:
    server.waiting = ABSENT | {"isAbsent": True}

    ended = await arc(
        "invoke", "dep", "late", "--wait-for-agent", "--timeout", "1s", url=server.url
    )

    assert ended.code == 5
    reason = "no sign of life from the agent on host-1 for 1d"
    assert f"still waiting: {reason}" in ended.err
    assert f"is still PENDING after 1s: {reason}; it goes on" in ended.err
    assert server.commands["cmd_1"].state == "PENDING"


@one_kind
async def test_the_command_of_an_earlier_sender_is_not_cancelled(server: FakeServer) -> None:
    server.waiting = ABSENT | {"isAbsent": True}
    await arc("invoke", "dep", "late", "--key", "k", "--no-wait", url=server.url)

    ended = await arc("invoke", "dep", "late", "--key", "k", "--timeout", "1s", url=server.url)

    assert ended.code == 5
    assert "no sign of life" in ended.err
    assert server.commands["cmd_1"].state == "PENDING"


@one_kind
async def test_a_status_says_why_the_command_waits(server: FakeServer) -> None:
    server.waiting = PAUSED
    await arc("invoke", "dep", "late", "--no-wait", url=server.url)

    for_people = await arc("status", "cmd_1", url=server.url)
    for_programs = await arc("status", "cmd_1", "--json", url=server.url)

    assert b"waiting     the agent on host-1 is paused (new disk)\n" in for_people.out
    assert for_programs.json()["waiting"]["reason"] == "paused"


@one_kind
async def test_gone_agents_are_called_gone_and_old_ones_listed_on_request(
    server: FakeServer,
) -> None:
    server.agents = [
        agent("here", "dep"),
        agent("left", "dep") | {"isGone": True, "status": {"state": "paused"}},
        agent("old", "dep") | {"isGone": True},
    ]
    server.old_agents = {"old"}

    now = await arc("agents", "-o", "wide", url=server.url)
    every = await arc("agents", "--all", "-o", "wide", url=server.url)

    def rows(out: bytes) -> dict[str, bool]:
        """The agents of a table, and whether it calls each gone."""
        cells = [line.split() for line in out.decode().splitlines()[1:]]
        return {row[-1]: "gone" in row for row in cells}

    assert rows(now.out) == {"here": False, "left": True}
    assert rows(every.out) == {"here": False, "left": True, "old": True}
