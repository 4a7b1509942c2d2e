"""An agent in this process, against a scripted server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.support.running_agent import RunningAgent, Start, running
from tests.support.scripted_server import ScriptedServer


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as running:
        yield running


@pytest.fixture
async def old_server() -> AsyncIterator[ScriptedServer]:
    """A server that knows the base protocol only."""
    async with ScriptedServer(knows_extensions=False) as running:
        yield running


@pytest.fixture
def logged() -> Any:
    """The events that are logged meanwhile."""
    with structlog.testing.capture_logs() as events:
        yield events


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start agents; they are stopped at the end."""

    async with AsyncExitStack() as stack:

        async def begin(to: ScriptedServer, *functions: Any, **settings: Any) -> RunningAgent:
            return await stack.enter_async_context(running(to.url, tmp_path, functions, settings))

        yield begin
