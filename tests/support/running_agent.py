"""An agent in the loop of the test, against a scripted server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from arc_agent.agent import Agent
from arc_agent.handlers.registry import handlers_of
from arc_agent.work.live_config import LiveConfig, Source
from tests.support.scripted_server import DEPLOYMENT

Start = Callable[..., Awaitable["RunningAgent"]]


class RunningAgent:
    """An agent that runs in a task of the test."""

    def __init__(self, live: LiveConfig, directory: Path) -> None:
        self.live = live
        self.directory = directory
        self.agent = Agent(live)
        self.task = asyncio.create_task(self.agent.run(handles_signals=False))

    async def stop(self, seconds: float = 15) -> int:
        """Stop it as SIGTERM does; its exit code."""
        if not self.task.done():
            self.agent.stop()
        async with asyncio.timeout(seconds):
            return await self.task


@asynccontextmanager
async def running(
    url: str, tmp_path: Path, functions: tuple[Any, ...], settings: dict[str, Any]
) -> AsyncIterator[RunningAgent]:
    """An agent with some handler functions and settings (`poll={"wait_seconds": 1}`)."""
    directory = tmp_path / "agent"
    config = {
        "server": {"url": url, "request_timeout_seconds": 5, "max_back_off_seconds": 0.2},
        "deployment": DEPLOYMENT,
        "name": "test",
        "data_dir": str(directory),
        "lease": {"seconds": 60},
        "poll": {"wait_seconds": 5, "interval_seconds": 0.05, "max_interval_seconds": 0.2},
        "drain": {"seconds": 0.2, "flush_seconds": 0.2},
        "handlers": {"grace_seconds": 0.2},
        "spool": {"min_free_bytes": 0},
    }
    for section, values in settings.items():
        known = config.get(section)
        config[section] = {**known, **values} if isinstance(known, dict) else values
    file = tmp_path / "agent.yaml"
    file.write_text(json.dumps(config))
    live = LiveConfig(Source(file=file, environ={}, overrides={}))
    for function in functions:
        for each in handlers_of(function, "test"):
            live.registry.add(each)
    agent = RunningAgent(live, directory)
    try:
        yield agent
    finally:
        await agent.stop()
