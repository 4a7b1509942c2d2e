"""A database: one connection that writes in batches, and two that read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from arc_protocol.errors import StoreUnavailable
from arc_server.store.engine import faults, opening, queries
from arc_server.store.engine.batches import Batches, Operation
from arc_server.store.engine.lock import DirectoryLock
from arc_server.store.engine.session import StoreSession
from arc_server.store.engine.snapshots import remove_snapshots
from arc_server.store.engine.thread import Worker
from arc_server.store.engine.transactions import Reading, Writing

MAX_BATCH: Final = 512
"""Operations in one commit. More only make the first wait for the last."""
BUSY_TIMEOUT_SECONDS: Final = 5.0
"""The longest wait for another process, such as an operator's `sqlite3`."""


class Database:
    """The database runs operations in the threads of its connections.

    An operation whose caller is cancelled may be committed all the same. Made by `open`.
    """

    writes: Batches
    reads: Batches
    """For what a request waits for."""
    lists: Batches
    """For what may take long: a list holds up no request."""

    def __init__(self, path: Path, resources: AsyncExitStack, max_batch: int) -> None:
        self.path = path
        self._resources = resources
        self._max_batch = max_batch
        self._failed = asyncio.Event()
        self._failure = ""

    @classmethod
    async def open(cls, path: Path, *, busy_timeout_seconds: float, max_batch: int) -> Database:
        """Open a database; make it, or bring its schema up to date.

        Lock its directory. Raises StoreRefused (StoreLocked, StoreCorrupt, StoreTooNew); nothing
        was touched then.
        """
        async with AsyncExitStack() as resources:
            database = cls(path, resources, max_batch)
            with opening.refusing(path):
                resources.callback(DirectoryLock.take(opening.lock_path(path)).release)
                await asyncio.to_thread(remove_snapshots, path.parent)
                await asyncio.to_thread(opening.inspect, path)
                # The last connection to close checkpoints: closed in reverse, that is the writer.
                writer = await opening.open_writer(path, busy_timeout_seconds=busy_timeout_seconds)
                writing = Writing(_session(writer), database._fail_soon())
                database.writes = database._serve(writer, writing)
                reader = await opening.open_reader(path, busy_timeout_seconds=busy_timeout_seconds)
                database.reads = database._serve(reader, Reading(_session(reader)))
                lister = await opening.open_reader(path, busy_timeout_seconds=busy_timeout_seconds)
                database.lists = database._serve(lister, Reading(_session(lister)))
            database._resources = resources.pop_all()
            return database

    async def wait_failed(self) -> str:
        """Wait until the database has failed for good, and return why: the process must stop then.

        After an I/O error at a commit only opening the database anew shows what is on the disk.
        """
        await self._failed.wait()
        return self._failure

    def check(self) -> None:
        """Raise StoreUnavailable if the database has failed for good."""
        if self._failed.is_set():
            raise StoreUnavailable(faults.FAILED)

    async def close(self) -> None:
        """Commit what is queued, then close."""
        await self._resources.aclose()

    def _serve(self, worker: Worker, perform: Callable[[Sequence[Operation]], int]) -> Batches:
        """Start the queue of a connection; `close` ends it before the connection."""
        self._resources.push_async_callback(worker.close)
        batches = Batches(worker, perform, max_batch=self._max_batch)
        task = asyncio.create_task(batches.run())

        async def finish() -> None:
            batches.close()
            await asyncio.wait({task})

        self._resources.push_async_callback(finish)
        return batches

    def _fail_soon(self) -> Callable[[str], None]:
        """Return what the writing thread calls when a commit has left doubt."""
        loop = asyncio.get_running_loop()

        def fail(reason: str) -> None:
            self._failure = reason
            loop.call_soon_threadsafe(self._failed.set)

        return fail


def _session(worker: Worker) -> StoreSession:
    return StoreSession(worker.raw, queries.load())
