"""The parts of a server on real files, without HTTP: quick to start and killed like all of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from arc_server.blobs.local import LocalBlobStore
from arc_server.ports.clock import Clock
from arc_server.server_keys import Signer
from arc_server.service.limits import CommandLimits
from arc_server.service.retention import Retention, RetentionLimits
from arc_server.service.services import build_services
from arc_server.store.sqlite_store import SqliteStore

BASE_URL = "http://server.test/v1"
INLINE_BYTES = 500
"""Small, so that bodies move to blob storage without being large."""
PURGED_AT_ONCE = RetentionLimits(
    succeeded_seconds=0, idempotency_key_seconds=0, orphan_seconds=0, pause_seconds=0, batch=3
)
"""What has succeeded goes with the next purge, and with it every blob that no command names."""


class ServerParts:
    """What an operation works with."""

    def __init__(
        self, store: SqliteStore, blobs: LocalBlobStore, clock: Clock, signer: Signer
    ) -> None:
        self.store = store
        self.blobs = blobs
        self.clock = clock
        self.has_failed = False
        """The store says that the process is to stop."""
        limits = CommandLimits(inline_bytes=INLINE_BYTES)
        services = build_services(
            store=store, blobs=blobs, links=signer, clock=clock, limits=limits
        )
        self.announcements = services.announcements
        self.commands = services.commands
        self.leases = services.leases
        self.agents = services.agents
        self.retention = Retention(
            store=store,
            blobs=blobs,
            uploads=services.uploads,
            announcements=services.announcements,
            clock=clock,
            limits=PURGED_AT_ONCE,
        )

    async def watch(self) -> None:
        """Notice when the store has failed for good."""
        await self.store.wait_failed()
        self.has_failed = True


@asynccontextmanager
async def open_server_parts(data_dir: Path, clock: Clock) -> AsyncIterator[ServerParts]:
    """A data directory, laid out as the server does it."""
    data_dir.mkdir(parents=True, exist_ok=True)
    store = await SqliteStore.open(data_dir / "arc.db")
    try:
        signer = Signer(data_dir / "keys")
        blobs = LocalBlobStore(data_dir / "blobs", signer)
        parts = ServerParts(store, blobs, clock, signer)
        watching = asyncio.create_task(parts.watch())
        try:
            yield parts
        finally:
            watching.cancel()
            await blobs.close()
    finally:
        await store.close()
