"""Every store that there is, for the suite of the port."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from arc_server.ports.store import Store
from arc_server.store.sqlite_store import SqliteStore
from tests.model.memory import MemoryStore
from tests.support.stores import new_sqlite

MEMORY_DISK = Path("/dev/shm")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a commit costs nothing, if there is such a place: these tests are about answers."""
    if not MEMORY_DISK.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK) as name:
        yield Path(name)


@pytest.fixture(params=["sqlite", "memory"])
async def store(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Store]:
    """An empty store of each kind."""
    opened = await new_sqlite(folder / "arc.db") if request.param == "sqlite" else MemoryStore()
    yield opened
    await opened.close()


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """An empty database."""
    opened = await SqliteStore.open(tmp_path / "arc.db")
    yield opened
    await opened.close()
