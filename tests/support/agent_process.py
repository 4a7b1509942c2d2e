"""An agent as a process of its own, and what it logs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.scripted_server import ScriptedServer
from tests.support.waiting import until

HANDLERS = """
import asyncio, os, pathlib, subprocess, time
from arc_agent import handler

RUNS = pathlib.Path(os.environ["RUNS"])

@handler("once")
async def once() -> str:
    with RUNS.open("a") as file:
        file.write("run\\n")
    return "done"

@handler("stubborn")
async def stubborn() -> None:
    RUNS.write_text("running")
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

@handler("thread")
def thread() -> None:
    RUNS.write_text("running")
    time.sleep(60)
"""


class Process:
    """An agent's process and what it logs."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log

    def events(self) -> list[dict[str, Any]]:
        """The log lines so far."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    async def until_logged(self, event: str, seconds: float = 15) -> dict[str, Any]:
        """Wait until an event is logged; return the first."""

        def logged() -> list[dict[str, Any]]:
            return [line for line in self.events() if line["event"] == event]

        return (await until(logged, seconds))[0]

    async def ended(self, seconds: float = 15) -> int:
        """Its exit status."""
        async with asyncio.timeout(seconds):
            return await self.process.wait()


@asynccontextmanager
async def agent(
    server: ScriptedServer | None, tmp_path: Path, *arguments: str, **environ: str
) -> AsyncIterator[Process]:
    """A process; killed at the end if it is still there."""
    (tmp_path / "my_handlers.py").write_text(HANDLERS)
    log = tmp_path / f"log-{len(list(tmp_path.glob('log-*')))}"
    given = ["--server", server.url, "--deployment", "dep-1"] if server is not None else []
    with log.open("w") as file:
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).parent / "arc-agent",
            *("run", *given, *arguments),
            cwd=tmp_path,
            env={
                "PATH": os.environ["PATH"],
                "RUNS": str(tmp_path / "runs"),
                "ARC_AGENT_DATA_DIR": str(tmp_path / "agent"),
                "ARC_AGENT_DRAIN_SECONDS": "0.1",
                "ARC_AGENT_HANDLERS_GRACE_SECONDS": "0.1",
                "ARC_AGENT_SERVER_MAX_BACK_OFF_SECONDS": "0.2",
                **environ,
            },
            stdout=file,
            stderr=file,
        )
    try:
        yield Process(process, log)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
