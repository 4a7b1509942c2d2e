"""Figures of the database for a monitoring system, and the beginning of those that are counted."""

from __future__ import annotations

from arc_protocol.messages.base import State
from arc_server.ports.meter import ServerMeter, StoreFigures
from arc_server.store.engine.rows import moment
from arc_server.store.engine.session import StoreSession


def begin_metering(db: StoreSession, meter: ServerMeter) -> None:
    """Fulfil SqliteStore.begin_metering. Only here the live commands are counted, in their index.

    The commands that this transaction has changed before are counted here, and not as moves.
    """
    db.meter = meter
    db.moves.clear()
    [counts] = db.rows("count_live")
    meter.began(
        dict(zip((State.PENDING_UPLOAD, State.PENDING, State.DISPATCHED), counts, strict=True))
    )


def read(db: StoreSession) -> StoreFigures:
    """Fulfil SqliteStore.figures."""
    oldest = db.row("oldest_pending")
    [(stored_bytes, agents)] = db.rows("usage_of_all")
    return StoreFigures(None if oldest is None else moment(oldest[0]), stored_bytes, agents)
