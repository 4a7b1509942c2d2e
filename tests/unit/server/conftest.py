"""Worlds on every store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from tests.support.service_world import World
from tests.support.stores import KINDS, opened

WorldOf = Callable[..., World]


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """A fresh store of each kind."""
    async with opened(request.param, tmp_path) as store:
        yield store


@pytest.fixture
async def world_of(store: Any) -> AsyncIterator[WorldOf]:
    """Makes worlds on one store, and ends them."""
    made: list[World] = []

    def make(**options: Any) -> World:
        made.append(World(store, **options))
        return made[-1]

    yield make
    for world in made:
        world.close()


@pytest.fixture
async def world(world_of: WorldOf) -> World:
    """A world with small limits, swept once: as a server is before it serves."""
    world = world_of()
    await world.sweeper.tick()
    world.store.calls.clear()
    return world


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[Any]]:
    """Yield what is logged, as events."""
    with structlog.testing.capture_logs() as events:
        yield events
