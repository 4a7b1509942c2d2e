"""`arc-agent status`: what a running agent says of itself."""

from __future__ import annotations

import asyncio
import json
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from arc_agent import Context, handler
from arc_agent.cli.main import main
from arc_agent.cli.status import print_text, size
from arc_runtime.control_socket import NotListening, ask
from tests.support.running_agent import RunningAgent, Start
from tests.support.scripted_server import ScriptedServer
from tests.support.waiting import until


def socket_of(agent: RunningAgent) -> Path:
    return agent.directory / "control.sock"


async def status(agent: RunningAgent) -> dict[str, Any]:
    """Return what it says."""
    return await asyncio.to_thread(ask, socket_of(agent), {"do": "status"})


async def status_with(agent: RunningAgent, holds: Any) -> dict[str, Any]:
    """Wait until the status is as a test wants it; return it."""

    async def as_wanted() -> dict[str, Any] | None:
        with suppress(NotListening):  # it is only starting
            said = await status(agent)
            return said if holds(said) else None
        return None

    return await until(as_wanted)


async def command_line(agent: RunningAgent, *words: str) -> int:
    """The exit code of `arc-agent status`."""
    return await asyncio.to_thread(main, ["status", "--socket", str(socket_of(agent)), *words])


async def test_a_running_command_is_shown_with_its_lease_and_its_progress(
    server: ScriptedServer, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    gate, begun = asyncio.Event(), asyncio.Event()

    @handler("tables.load")
    async def load(ctx: Context) -> None:
        ctx.progress(3, 10, "tables")
        begun.set()
        await gate.wait()

    agent = await start(server, load)
    server.send("tables.load", {"password": "hunter2hunter2"})
    await begun.wait()

    said = await status(agent)
    code = await command_line(agent)

    (running,) = said["running"]
    assert 50 < running.pop("lease_seconds_left") <= 60
    assert 0 <= running.pop("for_seconds") < 10
    assert running == {
        "id": "cmd_1",
        "command": "tables.load",
        "attempt": 1,
        "state": "running",
        "progress": {"done": 3, "total": 10, "text": "tables"},
    }
    assert "hunter2" not in json.dumps(said)
    assert (said["is_healthy"], said["degraded"], code) == (True, [], 0)
    assert "tables.load" in said["handlers"]
    out = capsys.readouterr().out
    assert "cmd_1  tables.load  running  1        " in out
    assert "3 of 10 tables" in out
    assert stat.S_IMODE(socket_of(agent).stat().st_mode) == 0o660
    gate.set()
    await server.response()
    assert (await status_with(agent, lambda s: not s["running"]))["done"] == 1


async def test_lost_contact_and_what_waits_in_the_spool_are_said(
    server: ScriptedServer, start: Start, capsys: pytest.CaptureFixture[str], logged: Any
) -> None:
    release = asyncio.Event()

    @handler("work")
    async def work() -> str:
        await release.wait()
        return "done"

    agent = await start(server, work)
    server.send("work")
    await status_with(agent, lambda s: [c["state"] for c in s["running"]] == ["running"])
    await server.stop()
    release.set()

    said = await status_with(agent, lambda s: s["spool"]["count"] and s["contact"]["is_lost"])
    code = await command_line(agent)

    assert code == 1
    assert [each["part"] for each in said["degraded"]] == ["contact"]
    assert said["spool"]["bytes"] > 0
    assert said["spool"]["oldest_seconds"] < 10
    out = capsys.readouterr().out
    assert "degraded" in out.splitlines()[0]
    assert "no contact for" in out
    assert "1 results, " in out


async def test_a_pause_is_an_order_and_no_fault(
    server: ScriptedServer, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = await start(server)
    await status_with(agent, lambda s: s["is_healthy"])
    await asyncio.to_thread(
        ask, socket_of(agent), {"do": "pause", "note": "moving", "seconds": 3600}
    )

    said = await status(agent)
    code = await command_line(agent)

    assert code == 0
    assert said["order"]["state"] == "paused"
    assert ": healthy, paused for another " in capsys.readouterr().out
    await asyncio.to_thread(ask, socket_of(agent), {"do": "resume"})


async def test_what_waits_for_approval_is_shown_without_its_params(
    server: ScriptedServer, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("rules: [{name: ask first, action: approve}]")
    agent = await start(server, policy={"file": str(policy)})
    server.send("arc.ping", {"secret_number": 4711})

    said = await status_with(agent, lambda s: s["approvals"])

    (asked,) = said["approvals"]
    assert (asked["id"], asked["rule"]) == ("cmd_1", "ask first")
    assert said["running"][0]["state"] == "waiting"
    assert said["policy"]["file"] == str(policy)
    assert len(said["policy"]["sha256"]) == 64
    assert "4711" not in json.dumps(said)
    print_text(said)
    assert "waiting for approval: 1\nID " in capsys.readouterr().out


async def test_the_age_of_a_token_file_is_told_and_not_the_token(
    server: ScriptedServer,
    start: Start,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    logged: Any,
) -> None:
    token = tmp_path / "token"
    token.write_text("very-secret-token")
    agent = await start(server, server={"token_file": str(token)})

    said = await status_with(agent, lambda s: s["is_healthy"])
    assert await command_line(agent, "--json") == 0

    assert said["credential"]["file"] == str(token)
    assert said["credential"]["age_seconds"] < 60
    shown = json.loads(capsys.readouterr().out)
    assert shown["agent_id"] == agent.agent.agent_id
    assert "very-secret-token" not in json.dumps(said)


def test_an_agent_that_does_not_run_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--data-dir", str(tmp_path)]) == 3

    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: no agent answers at ")
    assert shown.err.count("\n") == 2  # the second line says how to name another one


def test_sizes_are_short() -> None:
    assert [size(each) for each in (0, 1023, 1536, 5 << 20, 3 << 30)] == [
        "0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 GiB",
    ]  # fmt: skip
