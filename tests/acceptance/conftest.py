"""Fixtures of the acceptance tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

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
    async with _world_in(tmp_path, template) as world:
        yield world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory, template: Path) -> AsyncIterator[World]:
    """A world with a server, for all tests of a module that leave nothing behind in it."""
    async with _world_in(tmp_path_factory.mktemp("served"), template) as world:
        await world.server()
        yield world


@asynccontextmanager
async def _world_in(directory: Path, template: Path) -> AsyncIterator[World]:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=90)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        world = World(directory, template, session)
        try:
            yield world
        finally:
            await world.close()
        assert world.tracebacks() == []
