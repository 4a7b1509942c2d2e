"""A real server in this process, and hosts that enrol with it."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp

from arc_agent.agent import Agent
from arc_agent.cli import enrol
from arc_agent.config.sections import ServerSection
from arc_agent.host.clock import boot_seconds
from arc_agent.net.access_token import AccessToken
from arc_agent.net.identity_files import IdentityFiles
from arc_agent.work.live_config import LiveConfig, Source
from arc_server.app import RunningServer, serving
from arc_server.auth.enrolment import new_enrol_token
from arc_server.auth.tokens import Scope, new_token
from arc_server.clock import SystemClock
from arc_server.config.sections import EnrolmentSection, ServerConfig

DEPLOYMENT = "dep-1"


class HoursOff(SystemClock):
    """A clock that is hours away from the agents'; the test moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = timedelta(hours=5)

    def now(self) -> datetime:
        return super().now() + self.offset

    def drift(self) -> float:
        return super().drift() + self.offset.total_seconds()


class EnrolmentHost:
    """A server, and one host's directory."""

    def __init__(self, server: RunningServer, clock: HoursOff, directory: Path) -> None:
        self.server = server
        self.clock = clock
        self.directory = directory
        self.files = IdentityFiles(directory)

    async def enrol_token(self, *, uses: int = 1, seconds: float = 3600) -> Path:
        """A file that holds a fresh enrolment token."""
        made = new_enrol_token(DEPLOYMENT, uses, timedelta(seconds=seconds), self.clock.now())
        await self.server.parts.store.put_enrol_token(made.stored)
        file = self.directory.with_suffix(".enrol-token")
        file.write_text(made.text + "\n")
        return file

    async def enrol(self, token: Path | None = None, *, replace: bool = False) -> int:
        """`arc-agent enrol`; its exit code."""
        given = argparse.Namespace(
            server=self.server.url,
            deployment=None,
            config=None,
            data_dir=self.directory,
            replace=replace,
            enrol_token_file=token or await self.enrol_token(),
        )
        return await asyncio.to_thread(enrol.run, given)

    def token(self) -> AccessToken:
        """Return what an agent that starts now goes by."""
        identity = self.files.read()
        assert identity is not None
        return AccessToken(self.files, identity, self.settings, boot_seconds)

    @property
    def settings(self) -> ServerSection:
        """How to reach the server."""
        return ServerSection(url=self.server.url, request_timeout_seconds=5)

    async def revoke(self) -> None:
        """Revoke the credential that is in use."""
        identity = self.files.read()
        assert identity is not None
        store = self.server.parts.store
        assert await store.revoke_credential(identity.credential_id, datetime.now(UTC))

    async def lease(self, token: str | None) -> int:
        """Ask for work; the status."""
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(
                f"{self.server.url}/v1/commands/leases", json={"deploymentId": DEPLOYMENT}
            ) as answer,
        ):
            return answer.status

    async def invoke(self, command: str = "arc.ping", seconds: float = 15) -> dict[str, Any]:
        """Send a command and wait for its end."""
        made = new_token(Scope.SENDER, [DEPLOYMENT], datetime.now(UTC))
        await self.server.parts.store.put_token(made.stored, made.secret)
        headers = {"Authorization": f"Bearer {made.text}"}
        base = f"{self.server.url}/v1/commands"
        body = {
            "deploymentId": DEPLOYMENT,
            "command": command,
            "params": {"mode": "inline", "inlineBase64": "e30="},
        }
        async with aiohttp.ClientSession(headers=headers) as session:
            async with session.post(base, json=body) as answer:
                command_id = (await answer.json())["commandId"]
            url = f"{base}/{command_id}?waitSeconds={seconds:g}"
            async with session.get(url) as answer:
                return await answer.json()


@asynccontextmanager
async def enrolment_host(
    folder: Path, listen: str = "127.0.0.1:0", **enrolment: Any
) -> AsyncIterator[EnrolmentHost]:
    """A server with its data below `folder`, as often as wanted."""
    clock = HoursOff()
    config = ServerConfig(
        listen=listen, data_dir=folder / "server", enrolment=EnrolmentSection(**enrolment)
    )
    async with serving(config, clock) as server:
        yield EnrolmentHost(server, clock, folder / "host")


StartAgent = Callable[[EnrolmentHost], Awaitable[Agent]]


@asynccontextmanager
async def running_agent(host: EnrolmentHost, file: Path) -> AsyncIterator[Agent]:
    settings = {
        "server": {
            "url": host.server.url,
            "request_timeout_seconds": 5,
            "max_back_off_seconds": 0.2,
        },
        "deployment": DEPLOYMENT,
        "data_dir": str(host.directory),
        "poll": {"wait_seconds": 5},
        "drain": {"seconds": 0.2, "flush_seconds": 0.2},
        "spool": {"min_free_bytes": 0},
    }
    file.write_text(json.dumps(settings))
    agent = Agent(LiveConfig(Source(file=file, environ={}, overrides={})))
    task = asyncio.create_task(agent.run(handles_signals=False))
    try:
        yield agent
    finally:
        agent.stop()
        async with asyncio.timeout(15):
            await task
        # it has shut down the loop's executor, which was its own; the server goes on in this loop
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
