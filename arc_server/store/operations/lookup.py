"""Reading commands that are about to change: from memory, or from their rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from arc_protocol.errors import CommandNotFound, LeaseNotFound
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.store.engine.rows import StoredCommand, stored_command
from arc_server.store.engine.session import Again, StoreSession
from arc_server.store.operations import bodies


def find(db: StoreSession, command_id: str, within: Reach = EVERYTHING) -> StoredCommand:
    """Return a command in any state. Raises CommandNotFound, also for one out of reach."""
    stored = db.live.find(command_id)
    if stored is None:
        row = db.row("find_command", command_id=command_id)
        stored = None if row is None else stored_command(row)
    if stored is None or not within.covers(stored.command):
        raise CommandNotFound(f"no such command: {command_id}", command_id=command_id)
    return stored


def find_lease(db: StoreSession, lease_id: str, within: Reach) -> StoredCommand:
    """Return the command that is DISPATCHED under a lease.

    Raises LeaseNotFound, also for a lease that is another credential's.
    """
    row = db.row("find_lease", lease_id=lease_id)
    stored = None if row is None else stored_command(row)
    if stored is None or not (within.covers(stored.command) and within.holds(stored.command)):
        raise LeaseNotFound(f"no such lease, or it has ended: {lease_id}", lease_id=lease_id)
    return db.live.get(stored.seq) or stored


def find_all(db: StoreSession, query: str, **params: Any) -> Sequence[StoredCommand]:
    """Return the commands of a query that selects `command_columns`."""
    found = map(stored_command, db.rows(query, **params))
    return [db.live.get(stored.seq) or stored for stored in found]


def queued(db: StoreSession, query: str, **params: Any) -> Sequence[StoredCommand]:
    """Return the first commands of a queue with their params; `query` selects their numbers.

    Raises Again when params turn out to stand on damaged pages: SQLite lets nothing be written in
    that transaction any more. In the next one it is known whose they are.
    """
    unreadable = len(db.unreadable_params)
    found = [with_params(db, seq) for (seq,) in db.rows(query, **params)]
    if len(db.unreadable_params) > unreadable:
        raise Again
    return found


def with_params(db: StoreSession, seq: int) -> StoredCommand:
    """Return the command of a row with its params; DamagedBody where they cannot be read."""
    stored = db.live.get(seq)
    if stored is not None and stored.params is not None:
        return stored
    if seq not in db.unreadable_params:
        try:
            [row] = db.rows("command_with_params", seq=seq)
            return bodies.command_with_params(row)
        except sqlite3.DatabaseError:
            db.unreadable_params.add(seq)
    [row] = db.rows("command_alone", seq=seq)
    stored = stored_command(row)
    return StoredCommand(seq, stored.command, bodies.UNREADABLE)
