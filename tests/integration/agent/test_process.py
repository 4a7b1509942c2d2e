"""The agent as a process: crashes, signals, exit codes."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import pytest

from tests.support.agent_process import agent
from tests.support.scripted_server import ScriptedServer, inline


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.mark.parametrize("point", ["agent.after_spool", "agent.after_submit"])
async def test_an_agent_that_dies_after_its_handler_delivers_at_its_next_start(
    server: ScriptedServer, tmp_path: Path, runs: Path, point: str
) -> None:
    server.send("once")
    async with agent(
        server, tmp_path, "--handlers", "my_handlers", ARC_FAILPOINT=f"{point}=kill"
    ) as first:
        assert await first.ended() == -signal.SIGKILL
    before = len(server.responses())
    polls = len(server.seen("leases"))
    async with agent(server, tmp_path, "--handlers", "my_handlers") as second:
        response = await server.response(before + 1)
        await server.until(lambda: len(server.seen("leases")) > polls)
        second.process.terminate()
        assert await second.ended() == 0

    assert inline(response) == b'"done"'
    assert runs.read_text() == "run\n"
    assert server.seen("response")[-1].at < server.seen("leases")[polls].at


@pytest.mark.parametrize("point", ["agent.before_handler", "agent.after_handler"])
async def test_an_agent_that_dies_before_the_spool_has_said_nothing(
    server: ScriptedServer, tmp_path: Path, runs: Path, point: str
) -> None:
    server.send("once")
    async with agent(
        server, tmp_path, "--handlers", "my_handlers", ARC_FAILPOINT=f"{point}=kill"
    ) as first:
        assert await first.ended() == -signal.SIGKILL
    server.send("once", command_id="cmd_1")
    async with agent(server, tmp_path, "--handlers", "my_handlers"):
        await server.response()

    assert len(server.responses()) == 1
    assert runs.read_text() == "run\n" * (2 if point == "agent.after_handler" else 1)
    assert list((tmp_path / "agent" / "tmp").iterdir()) == []


async def test_files_of_a_process_that_died_are_cleared(
    server: ScriptedServer, tmp_path: Path
) -> None:
    for name in ("tmp/run-1/params", "bodies/0123"):
        path = tmp_path / "agent" / name
        path.parent.mkdir(parents=True)
        path.write_text("left over")
    async with agent(server, tmp_path) as process:
        await process.until_logged("ready")

        assert list((tmp_path / "agent" / "tmp").iterdir()) == []
        assert list((tmp_path / "agent" / "bodies").iterdir()) == []


async def test_a_second_agent_on_the_same_directory_is_turned_away(
    server: ScriptedServer, tmp_path: Path
) -> None:
    async with agent(server, tmp_path) as first:
        await first.until_logged("ready")
        async with agent(server, tmp_path) as second:
            assert await second.ended() == 1, "the unit is to try again: it may be gone then"
            assert second.log.read_text() == (
                f"error: the data directory {tmp_path / 'agent'} is used by another agent"
                f" (process {first.process.pid}, arc-agent); give a second agent its own by"
                " --data-dir\n"
            )


@pytest.mark.parametrize("command", ["stubborn", "thread"])
async def test_code_that_ignores_its_cancellation_does_not_keep_the_process(
    server: ScriptedServer, tmp_path: Path, runs: Path, command: str
) -> None:
    server.send(command)
    async with agent(server, tmp_path, "--handlers", "my_handlers") as process:
        await server.until(lambda: len(server.seen("leases")) >= 2)
        process.process.terminate()
        assert await process.ended() == 0

    assert server.seen("release")[0].json()["reason"] == "drain"


async def test_a_second_signal_ends_it_at_once(server: ScriptedServer, tmp_path: Path) -> None:
    server.send("stubborn")
    async with agent(
        server, tmp_path, "--handlers", "my_handlers", ARC_AGENT_DRAIN_SECONDS="60"
    ) as process:
        await server.until(lambda: len(server.seen("leases")) >= 2)
        process.process.terminate()
        await process.until_logged("stopping")
        process.process.terminate()
        assert await process.ended(3) == 1


async def test_it_runs_without_a_server_and_notices_when_there_is_one(tmp_path: Path) -> None:
    server = await ScriptedServer().start()
    await server.stop()
    async with agent(server, tmp_path) as process:
        await process.until_logged("contact.lost")
        await server.start()
        server.send("arc.ping")
        await server.response()
        await process.until_logged("contact.back")
        process.process.terminate()
        assert await process.ended() == 0
    await server.stop()


async def test_systemd_is_told(server: ScriptedServer, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)

        async def told(start: bytes) -> None:
            """Wait until a message has a line that starts so; others may come between."""
            loop = asyncio.get_running_loop()
            while not any(
                line.startswith(start)
                for line in (await loop.sock_recv(listener, 1000)).splitlines()
            ):
                pass

        async with (
            asyncio.timeout(15),
            agent(server, tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify")) as process,
        ):
            await told(b"READY=1")
            process.process.send_signal(signal.SIGHUP)
            await told(b"RELOADING=1")
            await told(b"READY=1")
            process.process.terminate()
            await told(b"STOPPING=1")
            assert await process.ended() == 0
