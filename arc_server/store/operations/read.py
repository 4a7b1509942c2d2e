"""Questions to the database. Nothing here writes."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from typing import Final

from arc_protocol import lifecycle
from arc_protocol.messages.base import State
from arc_server.ports.records import (
    CommandFilter,
    CommandPage,
    CommandWithBodies,
    CommandWithResponse,
    ReadResponse,
    StoredParams,
)
from arc_server.store.engine import schema
from arc_server.store.engine.rows import WIDTH, Row, command_of, moment
from arc_server.store.engine.session import Session
from arc_server.store.operations import bodies
from arc_server.store.operations.bodies import UNREADABLE

_AFTER_ALL: Final = 2**63 - 1
"""Above every seq: where a list begins."""
_ENDED_BADLY: Final = (State.FAILED, State.EXPIRED)


def get(db: Session, command_id: str) -> CommandWithResponse | None:
    """See Store.get."""
    try:
        row = db.row("command_with_response", command_id=command_id)
    except sqlite3.DatabaseError:
        return _get_around_damage(db, command_id)
    if row is None:
        return None
    command = command_of(row)
    if command.state not in lifecycle.TERMINAL:
        return CommandWithResponse(command=command)
    return CommandWithResponse(command=command, response=bodies.to_response(*row[WIDTH:]))


def _get_around_damage(db: Session, command_id: str) -> CommandWithResponse | None:
    row = db.row("find_command", command_id=command_id)
    if row is None:
        return None
    command = command_of(row)
    if command.state not in lifecycle.TERMINAL:
        return CommandWithResponse(command=command)
    return CommandWithResponse(command=command, response=_response(db, row[0]))


def get_with_bodies(db: Session, command_id: str) -> CommandWithBodies | None:
    """See Store.get_with_bodies."""
    row = db.row("find_command", command_id=command_id)
    if row is None:
        return None
    return CommandWithBodies(
        command=command_of(row), params=_params(db, row[0]), response=_response(db, row[0])
    )


def _params(db: Session, seq: int) -> StoredParams:
    try:
        row = db.row("params_of", seq=seq)
    except sqlite3.DatabaseError:
        return UNREADABLE
    return bodies.to_params(*(row or (None,) * 4))


def _response(db: Session, seq: int) -> ReadResponse | None:
    try:
        row = db.row("response_of", seq=seq)
    except sqlite3.DatabaseError:
        return UNREADABLE
    return None if row is None else bodies.to_response(*row)


def next_push_at(db: Session) -> datetime | None:
    """See Store.next_push_at."""
    row = db.row("next_push_at")
    return None if row is None else moment(row[0])


def last_sign_of_life(db: Session) -> datetime | None:
    """See Store.last_sign_of_life."""
    row = db.row("last_sign_of_life")
    return None if row is None else moment(row[0])


def has_live_leases(db: Session) -> bool:
    """See Store.has_live_leases."""
    return db.rows("has_live_leases") == [(1,)]


def schema_version(db: Session) -> int:
    """The number of the last migration."""
    return schema.version_of(db.connection)


def list_commands(db: Session, which: CommandFilter, before: int | None, limit: int) -> CommandPage:
    """See Store.list."""
    end = _AFTER_ALL if before is None else before
    rows = _newest(db, which, end, limit + 1)
    page = rows[:limit]
    return CommandPage(
        commands=[command_of(row) for row in page],
        next_before=page[-1][0] if page and len(rows) > limit else None,
    )


def _newest(db: Session, which: CommandFilter, before: int, limit: int) -> list[Row]:
    """The index that finds what is asked for, or nearly: see the end of commands in migrations/."""
    deployment_id, command = which.deployment_id, which.command
    state = None if which.state is None else which.state.value
    if command is not None and deployment_id is not None:
        return db.rows(
            "list_by_deployment_and_command",
            deployment_id=deployment_id,
            command=command,
            state=state,
            before=before,
            limit=limit,
        )
    if command is not None:
        return db.rows("list_by_command", command=command, state=state, before=before, limit=limit)
    if deployment_id is not None and which.state in _ENDED_BADLY:
        return db.rows(
            "list_ended_badly",
            deployment_id=deployment_id,
            state=state,
            before=before,
            limit=limit,
        )
    if which.state is not None and which.state is not State.SUCCEEDED:
        return db.rows(
            "list_by_state", state=state, deployment_id=deployment_id, before=before, limit=limit
        )
    if deployment_id is not None:
        return db.rows(
            "list_by_deployment",
            deployment_id=deployment_id,
            state=state,
            before=before,
            limit=limit,
        )
    return db.rows("list_all", state=state, before=before, limit=limit)
