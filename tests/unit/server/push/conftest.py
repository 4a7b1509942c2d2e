"""A receiver of pushes, and a world that pushes to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from arc_server.clock import SystemClock
from tests.support.push_target import PushWorker, push_worker
from tests.support.service_world import World

WorldOf = Callable[..., World]


@pytest.fixture
async def worker() -> AsyncIterator[PushWorker]:
    async with push_worker() as worker:
        yield worker


@pytest.fixture
async def pushing(world_of: WorldOf, worker: PushWorker) -> World:
    """A world in real time whose deployment d1 is pushed to the worker."""
    world = world_of(clock=SystemClock())
    await world.sweeper.tick()
    await world.push_to(worker.url)
    return world
