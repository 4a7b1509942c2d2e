"""Reading single commands. Nothing here writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from arc_protocol import lifecycle
from arc_protocol.lifecycle import LeaseEnd
from arc_server.ports.records import (
    CommandWithBodies,
    CommandWithResponse,
    PastLease,
    ReadResponse,
    StoredParams,
)
from arc_server.store.engine import schema
from arc_server.store.engine.rows import StoredCommand, moment, stored_command
from arc_server.store.engine.session import StoreSession
from arc_server.store.operations import bodies


def get(db: StoreSession, command_id: str) -> CommandWithResponse | None:
    """Fulfil CommandLookup.get."""
    try:
        row = db.row("command_with_response", command_id=command_id)
        return None if row is None else bodies.command_with_response(row)
    except sqlite3.DatabaseError:
        return _get_around_damage(db, command_id)


def _get_around_damage(db: StoreSession, command_id: str) -> CommandWithResponse | None:
    stored = _find(db, command_id)
    if stored is None:
        return None
    if stored.command.state not in lifecycle.TERMINAL:
        return CommandWithResponse(command=stored.command)
    return CommandWithResponse(command=stored.command, response=_response(db, stored.seq))


def get_with_bodies(db: StoreSession, command_id: str) -> CommandWithBodies | None:
    """Fulfil CommandStore.get_with_bodies."""
    stored = _find(db, command_id)
    if stored is None:
        return None
    params, signature = _params(db, stored.seq)
    return CommandWithBodies(
        command=stored.command,
        params=params,
        signature=signature,
        response=_response(db, stored.seq),
    )


def _find(db: StoreSession, command_id: str) -> StoredCommand | None:
    row = db.row("find_command", command_id=command_id)
    return None if row is None else stored_command(row)


def _params(db: StoreSession, seq: int) -> tuple[StoredParams, str | None]:
    try:
        row = db.row("params_of", seq=seq)
    except sqlite3.DatabaseError:
        return bodies.UNREADABLE, None
    *body, signature = row or (*bodies.NO_BODY, None)
    return bodies.to_params(*body), bodies.to_signature(signature)


def _response(db: StoreSession, seq: int) -> ReadResponse | None:
    try:
        row = db.row("response_of", seq=seq)
    except sqlite3.DatabaseError:
        return bodies.UNREADABLE
    return bodies.to_response(*(row or bodies.NO_BODY))


def past_leases(db: StoreSession, command_id: str) -> Sequence[PastLease]:
    """Fulfil CommandStore.past_leases."""
    return [
        PastLease(
            lease_id=lease_id,
            attempt=attempt,
            holder=holder,
            credential=credential,
            leased_at=moment(leased_at),
            ended_at=moment(ended_at),
            how=LeaseEnd(how),
        )
        for lease_id, attempt, holder, credential, leased_at, ended_at, how in db.rows(
            "past_leases", command_id=command_id
        )
    ]


def schema_version(db: StoreSession) -> int:
    """Return the number of the last migration."""
    return schema.version_of(db.connection)


def reusable_bytes(db: StoreSession) -> int:
    """Fulfil StoreHealth.reusable_bytes."""
    [(pages,)] = db.connection.execute("PRAGMA freelist_count").fetchall()
    [(page_bytes,)] = db.connection.execute("PRAGMA page_size").fetchall()
    return int(pages) * int(page_bytes)


def want_checkpoint(db: StoreSession) -> None:
    """Fulfil StoreHealth.checkpoint, after the commit of the batch."""
    db.wants_checkpoint = True
