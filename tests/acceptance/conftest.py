"""Fixtures of the acceptance tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.world import World, make_template


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's data directory with tokens in it, and the tokens beside it."""
    directory = tmp_path_factory.mktemp("template")
    asyncio.run(make_template(directory))
    return directory


@pytest.fixture
async def world(tmp_path: Path, template: Path) -> AsyncIterator[World]:
    """An empty world. At the end no process may have logged an exception."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=90)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        world = World(tmp_path, template, session)
        try:
            yield world
        finally:
            await world.close()
        assert world.tracebacks() == []
