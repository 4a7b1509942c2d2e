"""A SQLite connection with a thread of its own, entered once for a whole batch."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import aiosqlite

T = TypeVar("T")

_CACHED_STATEMENTS: Final = 256
"""More than there are named queries: each is prepared once."""


class Worker(aiosqlite.Connection):
    """A worker runs whole callables in the thread of an aiosqlite connection."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connect, iter_chunk_size=64)
        self._thread.daemon = True  # a store that was never closed must not keep the process alive

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Run `function` in the connection's thread."""
        return await self._execute(function, *args)  # type: ignore[no-any-return]

    @property
    def raw(self) -> sqlite3.Connection:
        """Return the connection itself. Do not use it while its thread is at work."""
        return self._conn


def worker(
    path: Path,
    *,
    busy_timeout_seconds: float,
    factory: type[sqlite3.Connection] = sqlite3.Connection,
) -> Worker:
    """Return a connection; await it to open it."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(
            path,
            timeout=busy_timeout_seconds,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=_CACHED_STATEMENTS,
            factory=factory,
        )

    return Worker(connect)
