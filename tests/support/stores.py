"""The stores that these tests run on. Files live in memory where they can: no test here is about
what survives a power cut."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from arc_server.store.sqlite_store import SqliteStore
from tests.model.memory import MemoryStore

KINDS: Final = ("memory", "sqlite")
_SHARED_MEMORY: Final = Path("/dev/shm")


_MIGRATED: list[bytes] = []
"""A database without rows, once there is one."""


async def copy_migrated(file: Path) -> None:
    """Make a new database: a copy, because its migrations cost as much as a test."""
    if not _MIGRATED:
        await (await SqliteStore.open(file)).close()
        _MIGRATED.append(file.read_bytes())
    else:
        file.touch(0o600)
        file.write_bytes(_MIGRATED[0])


async def new_sqlite(file: Path) -> SqliteStore:
    """Open a new database."""
    await copy_migrated(file)
    return await SqliteStore.open(file)


@asynccontextmanager
async def opened(kind: str, directory: Path) -> AsyncIterator[Any]:
    """A fresh store; `directory` is where its file goes when there is no shared memory."""
    if kind == "memory":
        store: Any = MemoryStore()
        yield store
        await store.close()
        return
    parent = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else directory
    with tempfile.TemporaryDirectory(dir=parent, prefix="arc-test-") as home:
        store = await new_sqlite(Path(home) / "arc.db")
        yield store
        await store.close()
