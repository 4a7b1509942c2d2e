"""Figures that are read from the server's parts at each scrape."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from arc_protocol.errors import StoreUnavailable
from arc_server.disk_room import DiskRoom
from arc_server.http.server import HttpServer
from arc_server.http.tls import ServerTls
from arc_server.last_backup import last_backup_at
from arc_server.metrics.loop_lag import LoopLag
from arc_server.ports.clock import Clock
from arc_server.ports.records import Epoch
from arc_server.push.outbox import Outbox
from arc_server.service.announcements import Announcements
from arc_server.store.sqlite_store import SqliteStore

STORE_SECONDS: Final = 2.0
"""A scrape goes without the database's own figures if they take longer: it is to say so meanwhile,
by the age of its queue."""


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a server that figures are read from."""

    store: SqliteStore
    announcements: Announcements
    http: HttpServer
    outbox: Outbox
    room: DiskRoom
    tls: ServerTls | None
    clock: Clock
    epoch: Epoch


Gauges = Mapping[str, float]
"""Values by the name of the figure without its prefix, as families.GAUGES has them."""


async def read_gauges(sources: Sources, lag: LoopLag) -> Gauges:
    """Return what the event loop knows. For that loop only."""
    waits = sources.announcements
    gauges: dict[str, float] = {
        "connections": sources.http.open_connections,
        "handshakes": sources.http.handshakes,
        "waiting_polls": waits.work.count,
        "waiting_results": waits.results.count,
        "loop_lag_max_seconds": lag.take(),
        "disk_level": sources.room.level,
        "pushes_sending": sources.outbox.sending,
        "push_circuits_open": sources.outbox.open_circuits,
    }
    database = sources.store.database
    for name, queue in (("write", database.writes), ("read", database.reads)):
        gauges[f"{name}_queue_operations"] = queue.waiting
        gauges[f"{name}_queue_age_seconds"] = queue.longest_wait_seconds()
    if sources.room.measured is not None:
        gauges["disk_free_bytes"], gauges["disk_size_bytes"] = sources.room.measured
    if sources.tls is not None:
        ends_at = sources.tls.certificate.not_after
        gauges["certificate_expiry_timestamp_seconds"] = ends_at.timestamp()
    with suppress(StoreUnavailable, TimeoutError):
        async with asyncio.timeout(STORE_SECONDS):
            gauges |= await _stored(sources)
    return gauges


async def _stored(sources: Sources) -> Gauges:
    found = await sources.store.figures()
    now = sources.clock.now()
    oldest_at = now if found.oldest_pending_at is None else found.oldest_pending_at
    return {
        "oldest_pending_age_seconds": max(0.0, (now - oldest_at).total_seconds()),
        "stored_bytes": found.stored_bytes,
        "agents": found.agents,
    }


def read_files(database: Path) -> Gauges:
    """Return the sizes of the database's files, and when it was backed up. Blocks."""
    wal = database.with_name(f"{database.name}-wal")
    gauges: dict[str, float] = {"database_bytes": _size(database), "wal_bytes": _size(wal)}
    backup_at = last_backup_at(database.parent)
    if backup_at is not None:
        gauges["last_backup_timestamp_seconds"] = backup_at.timestamp()
    return gauges


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
