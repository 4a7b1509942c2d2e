"""A SQLite connection with a thread of its own, entered once for a whole batch."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import aiosqlite

T = TypeVar("T")

KILL_VARIABLE: Final = "ARC_STATEMENT_KILL"
"""`N`, `N:before` or `N:after` in the environment of a test's process: SIGKILL before or after the
N-th statement of the write connection, counted from when the store is open (`open:N:before`: from
its first statement on). A process that lives to its end had fewer."""

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
        """The connection itself. Do not use it while its thread is at work."""
        return self._conn


def worker(path: Path, *, busy_timeout_seconds: float, is_writer: bool) -> Worker:
    """Return a connection; await it to open it."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(
            path,
            timeout=busy_timeout_seconds,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=_CACHED_STATEMENTS,
            factory=_factory() if is_writer else sqlite3.Connection,
        )

    return Worker(connect)


def _factory() -> type[sqlite3.Connection]:
    """Return the class of the write connection: a counting one only when a test asks for it."""
    return DoomedConnection if os.environ.get(KILL_VARIABLE) else sqlite3.Connection


class DoomedConnection(sqlite3.Connection):
    """A doomed connection counts statements, and kills the process at the one that a test named."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        spec = os.environ[KILL_VARIABLE]
        self._is_counting = spec.startswith("open:")
        number, _, when = spec.removeprefix("open:").partition(":")
        self._fatal = int(number)
        self._dies_before = when != "after"
        self._count = 0

    def start_counting(self) -> None:
        """Count from here on: the store is open."""
        self._is_counting = True

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Run a statement, or die."""
        if not self._is_counting:
            return super().execute(sql, parameters)
        self._count += 1
        if self._count != self._fatal:
            return super().execute(sql, parameters)
        if self._dies_before:
            self._die(sql)
        cursor = super().execute(sql, parameters)
        self._die(sql)
        return cursor

    def _die(self, sql: str) -> None:
        os.write(2, f"{KILL_VARIABLE}: statement {self._count}: {sql[:60]}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
