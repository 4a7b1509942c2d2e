"""Processes that handlers start have signals of their own; the agent stays out of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.agent_process import agent
from tests.support.scripted_server import ScriptedServer, inline

HANDLERS = """
import multiprocessing, os, signal, time
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

@handler("terminate.loop")
async def terminate_in_loop():
    return terminate()

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
