"""Enrolment with real processes: the commands that operators type, kills, revocation."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.support.processes import BIN, Process, run_once
from tests.support.raw_sender import DEPLOYMENT
from tests.support.world import World

SECRET = re.compile(r"arc_(?:enrol|access)_[A-Za-z0-9_-]{16}")


async def enrol_token(world: World) -> str:
    """`arc-server enrol-token create`, while the server runs."""
    [token] = await run_once(
        "arc-server",
        *("enrol-token", "create", "--deployment", DEPLOYMENT, "--expires", "5m"),
        *("--data-dir", str(world.directory / "server")),
    )
    return token


async def enrol(world: World, token: str, *arguments: str) -> tuple[int, str]:
    """`arc-agent enrol` with the token piped in: exit code and all that it printed."""
    process = await asyncio.create_subprocess_exec(
        BIN / "arc-agent",
        *("enrol", "--server", world.url, "--data-dir", str(world.directory / "one"), *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.environ["PATH"]},
    )
    out, _ = await process.communicate(token.encode() + b"\n")
    assert process.returncode is not None
    return process.returncode, out.decode()


async def agent(world: World, **env: str) -> Process:
    """An agent that has no token but what it enrolled for."""
    section = {"url": world.url, "token_file": None}
    return await world.agent("one", config={"server": section}, env=env, is_awaited=not env)


async def succeeds(world: World) -> None:
    """A command runs."""
    ended = await world.sender.result(await world.sender.create("arc.ping"))
    assert ended["state"] == "SUCCEEDED", ended


def texts(process: Process) -> str:
    """Everything that can be seen of a process: its log, its command line, its environment."""
    seen = [json.dumps(event) for event in process.log]
    if process.exit_code is None:
        for name in ("cmdline", "environ"):
            seen.append(Path(f"/proc/{process.pid}/{name}").read_bytes().decode())
    return "\n".join(seen)


async def test_an_agent_enrols_works_and_is_revoked_while_it_polls(world: World) -> None:
    server = await world.server()
    token = await enrol_token(world)

    code, said = await enrol(world, token)
    again, why = await enrol(world, token)
    other, used_up = await enrol(world, token, "--replace")
    one = await agent(world)
    await succeeds(world)
    seen = texts(server) + texts(one) + said + why + used_up
    listed = await run_once(
        "arc-server",
        *("credential", "list", "--json", "--data-dir", str(world.directory / "server")),
    )
    [credential] = json.loads(listed[0])
    await run_once(
        "arc-server",
        *("credential", "revoke", credential["id"]),
        *("--data-dir", str(world.directory / "server")),
    )
    told = await one.logged("credential.revoked", 5)

    assert (code, again, other) == (0, 1, 4)
    assert credential["id"] in said
    assert "already enrolled" in why
    assert "used up" in used_up
    assert credential["deployment"] == DEPLOYMENT
    assert not SECRET.search(seen)
    assert told["credential_id"] == credential["id"]
    assert len(one.events("credential.revoked")) == 1


@pytest.mark.parametrize(
    "point",
    [
        "agent.after_new_key_request",
        pytest.param("agent.after_new_key", marks=pytest.mark.chaos),
    ],
)
async def test_an_agent_killed_in_the_middle_of_a_rotation_works_after_its_restart(
    world: World, point: str
) -> None:
    await world.server({"enrolment": {"key_seconds": 1, "access_seconds": 1}})
    code, _ = await enrol(world, await enrol_token(world))
    assert code == 0

    first = await agent(world, ARC_FAILPOINT=f"{point}=kill")
    assert await first.ended() == -signal.SIGKILL
    second = await agent(world)
    await succeeds(world)

    await second.logged("credential.new_key")
    assert not second.events("contact.refused")


async def test_a_token_on_the_command_line_is_refused_and_not_repeated(tmp_path: Path) -> None:
    token = "arc_enrol_" + "x" * 43
    for arguments in (["enrol", token], ["enrol", f"--enrol-token={token}"], ["run", token]):
        process = await Process.start("enrol", "arc-agent", *arguments)
        assert await process.ended() == 2
        [line] = process.log
        assert "does not belong on the command line" in line["event"]
        assert token not in line["event"]
