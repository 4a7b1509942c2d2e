"""A real server in this process, on a free port, with its own data directory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from arc_server.app import DATABASE, serving
from arc_server.config.sections import AuthSection, DiskSection, ServerConfig
from arc_server.disk_room import Measured, measure
from arc_server.http.limits import HttpLimits
from tests.support.running_server import Client, Serve, admin_client
from tests.support.stores import copy_migrated


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Start a server with other limits than the default; gives an admin's client."""

    @asynccontextmanager
    async def start(
        http: dict[str, Any] | None = None,
        auth: dict[str, Any] | None = None,
        data_dir: Path = tmp_path / "data",
        gauge: Callable[[Path], Measured] = measure,
        **keys: Any,
    ) -> AsyncIterator[Client]:
        limits: dict[str, Any] = {"drain_seconds": 5}
        config = ServerConfig(
            listen="127.0.0.1:0",
            data_dir=data_dir,
            http=HttpLimits(**(limits | (http or {}))),
            auth=AuthSection(**(auth or {})),
            **{"disk": DiskSection(ballast_bytes=0), **keys},
        )
        if not data_dir.exists():
            data_dir.mkdir(0o700)
            await copy_migrated(data_dir / DATABASE)
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(serving(config, gauge=gauge))
            yield await stack.enter_async_context(admin_client(server))

    return start


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[Client]:
    """A server with every default, and its admin."""
    async with serve() as client:
        yield client
