"""A real server in this process, and hosts that enrol with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog

from arc_agent.agent import Agent
from tests.support.enrolment_host import EnrolmentHost, StartAgent, enrolment_host, running_agent


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[EnrolmentHost]:
    """A enrolment_host with every default."""
    async with enrolment_host(tmp_path) as made:
        yield made


@pytest.fixture
def logged() -> Any:
    """The events that are logged meanwhile."""
    with structlog.testing.capture_logs() as events:
        yield events


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[StartAgent]:
    """Start agents that show their identity; they are stopped at the end."""
    async with AsyncExitStack() as stack:

        async def begin(host: EnrolmentHost) -> Agent:
            return await stack.enter_async_context(running_agent(host, tmp_path / "agent.yaml"))

        yield begin
