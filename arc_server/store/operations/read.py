"""Reading commands, alone or in lists. Nothing here writes."""

from __future__ import annotations

import sqlite3
from typing import Final

from arc_protocol import lifecycle
from arc_protocol.messages.base import State
from arc_server.ports.records import (
    CommandFilter,
    CommandPage,
    CommandWithBodies,
    CommandWithResponse,
    ReadResponse,
    StoredError,
    StoredParams,
)
from arc_server.store.engine import schema
from arc_server.store.engine.rows import Row, StoredCommand, stored_command
from arc_server.store.engine.session import StoreSession
from arc_server.store.operations import bodies

_AFTER_ALL: Final = 2**63 - 1
"""Above every seq: where a list begins."""
_ENDED_BADLY: Final = (State.FAILED, State.EXPIRED)


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


def list_commands(
    db: StoreSession, which: CommandFilter, before: int | None, limit: int
) -> CommandPage:
    """Fulfil CommandStore.list."""
    end = _AFTER_ALL if before is None else before
    found = list(map(stored_command, _newest(db, which, end, limit + 1)))
    page = found[:limit]
    failed = [stored for stored in page if stored.command.state is State.FAILED]
    responses = {stored.command.command_id: _response(db, stored.seq) for stored in failed}
    return CommandPage(
        commands=[stored.command for stored in page],
        error_codes={
            command_id: response.code
            for command_id, response in responses.items()
            if isinstance(response, StoredError)
        },
        next_before=page[-1].seq if page and len(found) > limit else None,
    )


def _newest(db: StoreSession, which: CommandFilter, before: int, limit: int) -> list[Row]:
    """Query by the index that finds the commands of a filter, or nearly.

    The indexes are at the end of `commands` in migrations/0001.
    """
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
