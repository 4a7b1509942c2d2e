"""Removing what has been kept for long enough, in batches that hold up no other write.

A batch is bounded by the time that it takes in the writer's thread, not by rows alone: a command
with long bodies and many events takes a hundred times as long as a short one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from arc_protocol import lifecycle
from arc_protocol.errors import Conflict
from arc_protocol.messages.base import State
from arc_server.ports.records import CommandRecord, Purged, StoredError, StripMark, Stripped
from arc_server.store.engine.rows import micros, stored_command
from arc_server.store.engine.session import StoreSession
from arc_server.store.operations import bodies, lookup, transitions

BATCH_SECONDS: Final = 0.002
"""The time of a batch's statements. Its commit writes what they changed: on a slow disk another
10 ms. Together they stay well below the 50 ms that a write may wait for a purge."""
LINES_AT_A_TIME: Final = 500
"""Event lines that one statement deletes, in about 1 ms."""
ABANDONED: Final = StoredError(
    code="UPLOAD_ABANDONED", message="the params were not uploaded in time"
)

Timer = Callable[[], float]


class _Batch:
    """A batch has room until it has taken `limit` steps, or its time."""

    def __init__(self, limit: int, timer: Timer) -> None:
        self._limit = limit
        self._done = 0
        self._timer = timer
        self._until = timer() + BATCH_SECONDS

    def has_room(self) -> bool:
        """Return True if another step may be done. The first one always may."""
        return not self._done or (self._done < self._limit and self._timer() < self._until)

    def step(self) -> None:
        """Count a step."""
        self._done += 1


def fail_abandoned_uploads(
    db: StoreSession, before: datetime, now: datetime, limit: int
) -> Sequence[CommandRecord]:
    """Fulfil RetentionStore.fail_abandoned_uploads."""
    awaited = lookup.find_all(db, "awaited_since", before=micros(before), limit=limit)
    return [transitions.fail(db, stored, ABANDONED, now) for stored in awaited]


def left_uploads(db: StoreSession, limit: int) -> Sequence[str]:
    """Fulfil RetentionStore.left_uploads."""
    return [command_id for _, command_id, _, _ in db.rows("left_uploads", limit=limit)]


def forget_uploads(db: StoreSession, command_ids: Sequence[str]) -> None:
    """Fulfil RetentionStore.forget_uploads."""
    gone = set(command_ids)
    for seq, command_id, deployment_id, arrived in db.rows("left_uploads", limit=len(gone)):
        if command_id in gone:
            db.change("put_arrived", seq=seq, arrived=0)
            db.usage.changed(deployment_id).stored_bytes -= arrived


def purge_commands(
    db: StoreSession,
    state: State,
    ended_before: datetime,
    keys_before: datetime,
    limit: int,
    timer: Timer = time.perf_counter,
) -> Purged:
    """Fulfil RetentionStore.purge_commands."""
    batch = _Batch(limit, timer)
    purged: list[str] = []
    found = db.rows("ended_before", state=state.value, before=micros(ended_before), limit=limit)
    for seq, command_id in found:
        if not _delete_events(db, seq, batch):
            return Purged(command_ids=purged, is_done=False)
        db.change("delete_old_key", seq=seq, before=micros(keys_before))
        db.change("delete_ended", seq=seq)
        purged.append(command_id)
        batch.step()
    return Purged(command_ids=purged, is_done=len(found) < limit)


def strip_bodies(
    db: StoreSession,
    state: State,
    since: StripMark,
    ended_before: datetime,
    limit: int,
    timer: Timer = time.perf_counter,
) -> Stripped:
    """Fulfil RetentionStore.strip_bodies."""
    batch = _Batch(limit, timer)
    form, data, _, checksum = bodies.removed()
    emptied = {"form": form, "data": data, "checksum": checksum}
    paths: list[str] = []
    mark = since
    found = _ended_between(db, state, since, ended_before, limit)
    for seq, completed_at in found:
        if not batch.has_room():
            return Stripped(paths=paths, mark=mark, is_done=False)
        for query, blob in (
            ("params_path", bodies.BLOB),
            ("params_path", bodies.AWAITED),
            ("response_path", bodies.BLOB),
        ):
            paths += [path for (path,) in db.rows(query, seq=seq, form=blob)]
        db.change("remove_params", seq=seq, **emptied)
        db.change("remove_response", seq=seq, **emptied)
        mark = (completed_at, seq)
        batch.step()
    return Stripped(paths=paths, mark=mark, is_done=len(found) < limit)


def strip_events(
    db: StoreSession,
    state: State,
    since: StripMark,
    ended_before: datetime,
    limit: int,
    timer: Timer = time.perf_counter,
) -> Stripped:
    """Fulfil RetentionStore.strip_events."""
    batch = _Batch(limit, timer)
    mark = since
    found = _ended_between(db, state, since, ended_before, limit)
    for seq, completed_at in found:
        if not _delete_events(db, seq, batch):
            return Stripped(mark=mark, is_done=False)
        mark = (completed_at, seq)
        batch.step()
    return Stripped(mark=mark, is_done=len(found) < limit)


def purge_agents(db: StoreSession, before: datetime, limit: int) -> int:
    """Fulfil RetentionStore.purge_agents."""
    return db.change("delete_agents_unseen", before=micros(before), limit=limit)


def purge_tokens(db: StoreSession, before: datetime, limit: int) -> int:
    """Fulfil RetentionStore.purge_tokens, but for the journal."""
    at = micros(before)
    return sum(
        db.change(query, before=at, limit=limit)
        for query in (
            "delete_tokens_expired",
            "delete_tokens_revoked",
            "delete_enrol_tokens_expired",
            "delete_enrol_tokens_revoked",
            "delete_credentials_revoked",
        )
    )


def delete_command(db: StoreSession, command_id: str) -> bool:
    """Fulfil RetentionStore.delete_command."""
    row = db.row("find_command", command_id=command_id)
    if row is None:
        return False
    stored = stored_command(row)
    state = stored.command.state
    if state not in lifecycle.TERMINAL:
        raise Conflict(f"the command is {state}: cancel it first", command_id=command_id)
    db.change("delete_ended", seq=stored.seq)
    return True


def remove_agent(db: StoreSession, deployment_id: str, agent_id: str) -> bool:
    """Fulfil RetentionStore.remove_agent."""
    named = {"deployment_id": deployment_id, "agent_id": agent_id}
    held = db.row("lease_of_agent", **named)
    if held is not None:
        raise Conflict(f"the agent holds the command {held[0]}", command_id=held[0])
    return db.change("delete_agent", **named) > 0


def remove_deployment(db: StoreSession, deployment_id: str, now: datetime) -> bool:
    """Fulfil RetentionStore.remove_deployment."""
    if db.deployment(deployment_id) is None:
        return False
    named = {"deployment_id": deployment_id}
    if live := db.row("live_command_of_deployment", **named):
        raise Conflict(f"the command {live[0]} waits or runs: cancel it first", command_id=live[0])
    if credential := db.row("credential_of_deployment", **named):
        raise Conflict(f"the credential {credential[0]} is good: revoke it first")
    if token := db.row("enrol_token_of_deployment", **named, now=micros(now)):
        raise Conflict(f"the enrolment token {token[0]} is good: revoke it first")
    db.change("delete_agents_of_deployment", **named)
    db.change("delete_deployment", **named)
    db.forget_deployment(deployment_id)
    return True


def _delete_events(db: StoreSession, seq: int, batch: _Batch) -> bool:
    """Delete the events of a command. Return False if the batch had no room for all of them."""
    while True:
        if not batch.has_room():
            return False
        deleted = db.change("delete_lines", seq=seq, limit=LINES_AT_A_TIME)
        if deleted < LINES_AT_A_TIME:
            break
        batch.step()
    db.change("delete_stream", seq=seq)
    return True


def _ended_between(
    db: StoreSession, state: State, since: StripMark, before: datetime, limit: int
) -> list[tuple[int, int]]:
    at, after = since
    rows = db.rows(
        "ended_between",
        state=state.value,
        since=at,
        after=after,
        before=micros(before),
        limit=limit,
    )
    return [(seq, completed_at) for seq, completed_at in rows]
