"""The approval hook: a program of the operator's is told what waits, and nothing depends on it."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from arc_agent import handler
from arc_runtime.control_socket import ask
from tests.support.running_agent import Start
from tests.support.scripted_server import ScriptedServer
from tests.support.waiting import until

Hook = Callable[..., dict[str, Any]]


@handler("quick")
async def quick() -> str:
    return "done"


@pytest.fixture
def hook(tmp_path: Path) -> Hook:
    """Settings of an agent with a hook: a shell script that is called with the test's directory."""
    (tmp_path / "policy.yaml").write_text(
        yaml.safe_dump({"rules": [{"name": "ask", "commands": ["quick"], "action": "approve"}]})
    )

    def settings(script: str, **more: Any) -> dict[str, Any]:
        program = tmp_path / "hook"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(stat.S_IRWXU)
        argv = [str(program), "a word; touch shell", str(tmp_path)]
        return {"policy": {"file": str(tmp_path / "policy.yaml"), "approval_hook": argv, **more}}

    return settings


async def failure(logged: Any) -> str:
    """Wait until it is logged that the hook failed; the reason."""

    def reasons() -> list[str]:
        return [each["reason"] for each in logged if each["event"] == "approval.hook_failed"]

    return (await until(reasons))[0]


async def approve(directory: Path) -> dict[str, Any]:
    """Approve the command."""
    path = directory / "control.sock"
    return await asyncio.to_thread(ask, path, {"do": "approve", "id": "cmd_a"})


async def test_the_program_gets_the_request_without_the_params(
    server: ScriptedServer, start: Start, tmp_path: Path, hook: Hook
) -> None:
    server.send("quick", {"password": "hunter2"}, command_id="cmd_a")
    script = 'cat > "$2/part"; printf %s "$1" > "$2/word"; mv "$2/part" "$2/got"'
    await start(server, quick, **hook(script))

    await until((tmp_path / "got").exists)

    got = json.loads((tmp_path / "got").read_text())
    assert (got["id"], got["command"], got["rule"]) == ("cmd_a", "quick", "ask")
    assert (got["signed_by"], got["senders"], got["params_bytes"]) == (None, [], 23)
    assert len(got["params_sha256"]) == 64
    assert "hunter2" not in (tmp_path / "got").read_text()
    assert (tmp_path / "word").read_text() == "a word; touch shell", "no shell has read it"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo no mail today >&2; exit 3", "exit status 3: no mail today"),
        ("sleep 600 & sleep 600", "killed after 0.3 s"),
        ("exec 0<&-; exit 1", "exit status 1"),
    ],
)
async def test_a_program_that_fails_is_logged_and_holds_up_nothing(
    server: ScriptedServer,
    start: Start,
    hook: Hook,
    logged: Any,
    script: str,
    reason: str,
) -> None:
    server.send("quick", command_id="cmd_a")
    agent = await start(server, quick, **hook(script, approval_hook_seconds=0.3))
    assert reason in await failure(logged)

    await approve(agent.directory)
    assert (await server.response())["status"] == "success"


async def test_a_command_is_approved_while_the_program_still_runs(
    server: ScriptedServer, start: Start, tmp_path: Path, hook: Hook
) -> None:
    os.mkfifo(tmp_path / "fifo")
    server.send("quick", command_id="cmd_a")
    agent = await start(server, quick, **hook('touch "$2/begun"; cat "$2/fifo"'))
    await until((tmp_path / "begun").exists)

    await approve(agent.directory)

    assert (await server.response())["status"] == "success"
    assert await agent.stop() == 0, "the end of the agent does not wait for it either"
    with (tmp_path / "fifo").open("w"):
        pass  # it ends


async def test_a_program_that_is_not_there_is_logged(
    server: ScriptedServer,
    start: Start,
    hook: Hook,
    tmp_path: Path,
    logged: Any,
) -> None:
    server.send("quick", command_id="cmd_a")
    settings = hook("")
    (tmp_path / "hook").unlink()
    agent = await start(server, quick, **settings)

    assert "No such file or directory" in await failure(logged)

    await approve(agent.directory)
    assert (await server.response())["status"] == "success"
