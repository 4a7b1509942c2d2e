"""Processes that handlers start have signals of their own; the agent stays out of it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from pathlib import Path

import pytest

from tests.support.agent_process import agent
from tests.support.scripted_server import ScriptedServer, inline

HANDLERS = """
import asyncio, multiprocessing, os, signal, subprocess, time
from arc_agent import handler

FORKS = multiprocessing.get_context("fork")

@handler("terminate.thread")
def terminate():
    codes = []
    for _ in range(2):
        child = FORKS.Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join()
        codes.append(child.exitcode)
    return codes

@handler("environment")
def environment():
    given = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    return sorted(line.partition("=")[0] for line in given.splitlines())

@handler("terminate.loop")
async def terminate_in_loop():
    return terminate()

@handler("ignore.and.stay")
async def ignore_and_stay():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    await asyncio.sleep(60)

@handler("pool")
def pool():
    with FORKS.Pool(2) as workers:
        return workers.map(abs, [-1, -2])
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path) -> None:
    (tmp_path / "child_handlers.py").write_text(HANDLERS)


async def test_children_that_a_handler_forks_and_terminates_leave_the_agent_running(
    server: ScriptedServer, tmp_path: Path
) -> None:
    async with agent(server, tmp_path, "--handlers", "child_handlers") as process:
        for number, command in enumerate(("terminate.thread", "terminate.loop", "pool"), 1):
            server.send(command)
            answer = inline(await server.response(number))
            assert answer == (b"[1,2]" if command == "pool" else b"[-15,-15]"), command
        process.process.terminate()
        assert await process.ended() == 0


async def test_a_handler_s_subprocess_inherits_no_secret_and_no_word_to_systemd(
    server: ScriptedServer, tmp_path: Path
) -> None:
    own = {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": "60000000",
        "LISTEN_FDS": "1",
        "CREDENTIALS_DIRECTORY": str(tmp_path),
        "ARC_AGENT_SERVER_TOKEN": "s3cret",
        "ALIEN_COMMANDS_TOKEN": "s3cret",
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(own["NOTIFY_SOCKET"])
        listener.settimeout(15)
        async with agent(server, tmp_path, "--handlers", "child_handlers", **own) as process:
            server.send("environment")
            given = json.loads(inline(await server.response()))
            said = await asyncio.to_thread(listener.recv, 1000)
            process.process.send_signal(signal.SIGHUP)  # it reads its environment again
            await process.until_logged("reload.done")

    assert "RUNS" in given
    assert not own.keys() & set(given)
    assert said in (b"READY=1", b"WATCHDOG=1")
    headers = {k.lower(): v for k, v in server.seen("leases")[-1].headers.items()}
    assert headers["authorization"] == "Bearer s3cret"


PROGRAMS = """
server: {request_timeout_seconds: 5}
handlers:
  exec:
    fail: {argv: [sh, -c, "exit 3"]}
    killed: {argv: [sh, -c, "kill -9 $$"]}
"""


@pytest.fixture
def programs(tmp_path: Path) -> str:
    """A configuration with programs that fail."""
    path = tmp_path / "agent.yaml"
    path.write_text(PROGRAMS)
    return str(path)


async def test_a_program_that_fails_is_a_failure_where_sigchld_was_ignored_at_start(
    server: ScriptedServer, tmp_path: Path, programs: str
) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the agent inherits it
    try:
        async with agent(server, tmp_path, "--config", programs) as process:
            signal.signal(signal.SIGCHLD, before)
            server.send("fail")
            server.send("killed")
            await server.until(lambda: len(server.responses()) >= 2)
            process.process.terminate()
            assert await process.ended() == 0
    finally:
        signal.signal(signal.SIGCHLD, before)

    assert {response["code"] for response in server.responses()} == {"HANDLER_ERROR"}
    assert {response["message"] for response in server.responses()} == {
        "the program exited with status 3",
        "the program was ended by SIGKILL",
    }


async def test_a_program_whose_exit_status_a_handler_loses_is_no_success(
    server: ScriptedServer, tmp_path: Path, programs: str
) -> None:
    given = ("--config", programs, "--handlers", "child_handlers")
    async with agent(server, tmp_path, *given) as process:
        server.send("ignore.and.stay")
        await server.until(lambda: len(server.seen("leases")) >= 2)
        server.send("fail")
        response = await server.response()
        process.process.terminate()
        assert await process.ended() == 0

    assert response["code"] == "HANDLER_ERROR"
    assert response["message"] == "the program's exit status is unknown"
