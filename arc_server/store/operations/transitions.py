"""Every statement that changes a command: guarded, counted, and followed by what is held of it.

A transition takes a command as it was just read, and returns it as it stands now.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec

from arc_protocol import lifecycle
from arc_protocol.messages.base import CommandTarget, State
from arc_server.ports.records import (
    AwaitedBlob,
    CommandRecord,
    StoredBlob,
    StoredBody,
    StoredError,
    StoredInline,
    StoredResponse,
    StoredSuccess,
)
from arc_server.store.engine.rows import NONE, StoredCommand, micros, micros_or_none, tags_text
from arc_server.store.engine.session import StoreSession
from arc_server.store.operations import bodies

KEPT_LEASES: Final = 100
"""The past leases of a command that are kept: as many as it may have attempts. A lease that costs
none may end any number of times."""
CANCELLED = StoredError(code=lifecycle.CANCELLED, message="the command was cancelled")


class LostUpdate(AssertionError):
    """A guarded update missed the row that its own transaction has just read. A bug."""


# one command


def insert(
    db: StoreSession,
    command: CommandRecord,
    params: StoredInline | StoredBlob | AwaitedBlob,
    signature: str | None,
) -> int:
    """Store a new command; return its number."""
    seq = db.next_number()
    created_at = micros(command.created_at)
    tags = tags_text(command.tags)
    is_ready = command.state is State.PENDING
    waits = _waits_unqueued(command, command.created_at)
    db.change(
        "insert_command",
        seq=seq,
        command_id=command.command_id,
        deployment_id=command.deployment_id,
        target_id=command.target.resource_id,
        target_type=command.target.resource_type.value,
        command=command.command,
        state=command.state.value,
        max_attempts=command.max_attempts,
        created_at=created_at,
        is_push=1 if command.is_push else 0,
        deadline=NONE if command.deadline is None else micros(command.deadline),
        ready_order=seq if is_ready and not waits else NONE,
        push_at=_push_time(command, command.created_at) if command.is_push else NONE,
        created_by=command.created_by,
        retry_of=command.retry_of,
        tags=tags,
        not_before=micros_or_none(command.not_before),
    )
    for key, value in (command.tags or {}).items():
        db.change("insert_tag", key=key, value=value, created_at=created_at, command=seq)
    form, data, size, checksum = bodies.of_params(params)
    db.change("insert_params", command=seq, form=form, data=data, size=size, checksum=checksum)
    used = db.usage.changed(command.deployment_id)
    used.live_commands += 1
    used.stored_bytes += (size or 0) + (0 if tags is None else len(tags.encode()))
    if command.state is State.PENDING_UPLOAD:
        used.open_uploads += 1
    if signature is not None:  # a statement of its own: most commands do without
        db.change("add_signature", command=seq, signature=bytearray(signature, "ascii"))
    db.live.put(StoredCommand(seq, command, params, signature))
    if db.meter.is_on:
        db.moves.append((command, None, command.state, command.created_at, False, False))
    return seq


def make_ready(
    db: StoreSession, stored: StoredCommand, params: StoredBody, now: datetime
) -> CommandRecord:
    """Move PENDING_UPLOAD → PENDING with the params that arrived, behind all ready commands."""
    command = stored.command
    replace_params(db, stored, params)
    db.usage.changed(command.deployment_id).open_uploads -= 1
    _hit_one(
        db.change(
            "ready_after_upload",
            seq=stored.seq,
            ready_order=None if _waits_unqueued(command, now) else db.next_number(),
            push_at=_push_time(command, now) if command.is_push else None,
        )
    )
    _note(db, command, State.PENDING, now)
    return msgspec.structs.replace(command, state=State.PENDING)


def release_delayed(db: StoreSession, stored: StoredCommand) -> None:
    """Put a PENDING command whose instant has come behind all that are ready."""
    _hit_one(db.change("release_delayed", seq=stored.seq, ready_order=db.next_number()))


def dispatch(
    db: StoreSession,
    stored: StoredCommand,
    lease_id: str,
    holder: str | None,
    now: datetime,
    until: datetime,
    credential: str | None = None,
) -> CommandRecord:
    """Move PENDING → DISPATCHED. A push is sent again under its first lease."""
    command = stored.command
    lease_attempt = command.attempt
    was_agents = command.lease_holder is not None or command.lease_credential is not None
    if command.is_push and command.lease_id is not None and not was_agents:
        lease_id, lease_attempt = command.lease_id, command.lease_attempt or command.attempt
    _hit_one(
        db.change(
            "dispatch",
            seq=stored.seq,
            lease_id=lease_id,
            lease_attempt=lease_attempt,
            expires_at=micros(until),
            holder=holder,
            credential=credential,
            now=micros(now),
        )
    )
    db.usage.changed(command.deployment_id).dispatched += 1
    if db.meter.is_on:
        is_uploaded = isinstance(stored.params, StoredBlob)
        db.moves.append((command, command.state, State.DISPATCHED, now, True, is_uploaded))
    return _changed(
        db,
        stored,
        state=State.DISPATCHED,
        dispatched_at=now,
        lease_id=lease_id,
        lease_attempt=lease_attempt,
        lease_expires_at=until,
        lease_holder=holder,
        lease_credential=credential,
    )


def renew(db: StoreSession, stored: StoredCommand, until: datetime) -> CommandRecord:
    """Let a lease end at `until`, or when it ends anyway if that is later."""
    command = stored.command
    until = max(until, command.lease_expires_at or until)
    _hit_one(
        db.change("renew", seq=stored.seq, lease_id=command.lease_id, expires_at=micros(until))
    )
    return _changed(db, stored, lease_expires_at=until)


def request_cancel(db: StoreSession, stored: StoredCommand) -> CommandRecord:
    """Ask the holder of a DISPATCHED command to stop."""
    _hit_one(db.change("request_cancel", seq=stored.seq, lease_id=stored.command.lease_id))
    return _changed(db, stored, cancel_requested=True)


def hand_back(
    db: StoreSession,
    stored: StoredCommand,
    now: datetime,
    *,
    costs_attempt: bool,
    how: lifecycle.LeaseEnd,
    push_at: datetime | None = None,
) -> CommandRecord:
    """End a lease without a response: EXPIRED if overdue, else redelivered or FAILED as
    `lifecycle.hand_back` decides. The command keeps its place in the order."""
    command = stored.command
    if lifecycle.is_overdue(command.deadline, now):
        return expire(db, stored, now)
    verdict = lifecycle.hand_back(
        command.attempt,
        command.max_attempts,
        costs_attempt=costs_attempt,
        cancel_requested=command.cancel_requested,
    )
    if verdict.failure_code == lifecycle.CANCELLED:
        return fail(db, stored, CANCELLED, now)
    if verdict.failure_code is not None:
        return fail(db, stored, _used_up(verdict.failure_code, command), now)
    home = _home(db, command)
    _hit_one(
        db.change(
            "hand_back",
            seq=stored.seq,
            lease_id=command.lease_id,
            attempt=verdict.attempt,
            target_id=home.resource_id,
            target_type=home.resource_type.value,
            push_at=None if push_at is None else micros(push_at),
        )
    )
    db.usage.changed(command.deployment_id).dispatched -= 1
    _note(db, command, State.PENDING, now)
    _keep_past_lease(db, stored, now, how)
    return _changed(db, stored, state=State.PENDING, attempt=verdict.attempt, target=home)


def finish(
    db: StoreSession,
    stored: StoredCommand,
    response: StoredResponse,
    now: datetime,
    by: str | None = None,
) -> CommandRecord:
    """End a command as SUCCEEDED or FAILED with its holder's response, submitted `by` it.

    PENDING, it was released or its lease lapsed, and no other holder has leased it since.
    """
    if stored.command.state is State.PENDING:
        _hit_one(db.change("dispatch_again", seq=stored.seq, lease_id=stored.command.lease_id))
        _note(db, stored.command, State.DISPATCHED, now)
        command = msgspec.structs.replace(stored.command, state=State.DISPATCHED)
        stored = msgspec.structs.replace(stored, command=command)
        db.usage.changed(command.deployment_id).dispatched += 1
    if not isinstance(response, StoredSuccess):
        return fail(db, stored, response, now, by)
    _hit_one(
        db.change(
            "succeed", seq=stored.seq, lease_id=stored.command.lease_id, now=micros(now), by=by
        )
    )
    put_response(db, stored, response)
    return _ended(db, stored, State.SUCCEEDED, now, by)


def hand_in(
    db: StoreSession,
    stored: StoredCommand,
    lease_id: str,
    response: StoredResponse,
    now: datetime,
    by: str | None,
) -> CommandRecord:
    """End a command with the response of a lease that a restore has undone."""
    if stored.command.state is State.PENDING:
        command = dispatch(db, stored, lease_id, None, now, now)
        stored = msgspec.structs.replace(stored, command=command)
    return finish(db, stored, response, now, by)


def fail(
    db: StoreSession,
    stored: StoredCommand,
    error: StoredError,
    now: datetime,
    by: str | None = None,
) -> CommandRecord:
    """End a live command as FAILED, with an error to show; `by` a caller, None by the server."""
    _hit_one(_end(db, "fail", stored, now, by=by, error_code=error.code))
    put_response(db, stored, error)
    return _ended(db, stored, State.FAILED, now, by, error.code)


def expire(db: StoreSession, stored: StoredCommand, now: datetime) -> CommandRecord:
    """End a live command whose deadline has passed as EXPIRED."""
    _hit_one(_end(db, "expire", stored, now))
    return _ended(db, stored, State.EXPIRED, now)


def replace_params(db: StoreSession, stored: StoredCommand, params: StoredBody) -> None:
    """Store params in the place of older ones. A trigger subtracts the size of those."""
    seq = stored.seq
    announced, arrived = _awaited(db, seq)
    db.usage.changed(stored.command.deployment_id).stored_bytes -= max(0, arrived - announced)
    form, data, size, checksum = bodies.of_params(params)
    db.change("replace_params", command=seq, form=form, data=data, size=size, checksum=checksum)
    db.usage.changed(stored.command.deployment_id).stored_bytes += size or 0
    db.unreadable_params.discard(seq)
    db.live.drop(seq)


def put_arrived(db: StoreSession, stored: StoredCommand, size: int) -> None:
    """Count what was uploaded of awaited params, in the place of an earlier upload."""
    announced, before = _awaited(db, stored.seq)
    if not db.change("put_arrived", seq=stored.seq, arrived=size):
        return  # an operator has put other params in
    used = db.usage.changed(stored.command.deployment_id)
    used.stored_bytes += max(announced, size) - max(announced, before)


def put_response(db: StoreSession, stored: StoredCommand, response: StoredResponse) -> None:
    """Store a response, in the place of an older one if there is any; a trigger subtracts that."""
    form, data, size, checksum = bodies.of_response(response)
    db.change(
        "replace_response", command=stored.seq, form=form, data=data, size=size, checksum=checksum
    )
    db.usage.changed(stored.command.deployment_id).stored_bytes += size or 0


# many commands


def move_waiting(db: StoreSession, deployment_id: str, from_id: str, target: CommandTarget) -> int:
    """Give the waiting commands of one target to another, or to its new type. Return how many."""
    db.live.clear()
    return sum(
        db.change(
            query,
            deployment_id=deployment_id,
            from_id=from_id,
            to_id=target.resource_id,
            to_type=target.resource_type.value,
        )
        for query in ("move_ready", "move_pushes", "move_awaited")
    )


def start_pushing(db: StoreSession, deployment_id: str, now: datetime) -> None:
    """Push the live commands of a deployment from now on."""
    db.live.clear()
    db.change("start_pushing", deployment_id=deployment_id, now=micros(now))


def stop_pushing(db: StoreSession, deployment_id: str, now: datetime) -> None:
    """Lease the live commands of a deployment to agents from now on."""
    db.live.clear()
    db.change("stop_pushing", deployment_id=deployment_id, now=micros(now))


def shift_leases(db: StoreSession, seconds: float) -> int:
    """Move the end of every lease and the due time of every push. Return how many leases."""
    db.live.clear()
    shift = round(seconds * 1_000_000)
    db.change("shift_pushes", shift=shift)
    return db.change("shift_leases", shift=shift)


def freeze(db: StoreSession, until: datetime) -> None:
    """Let every lease be good, and every push wait, until then at least."""
    db.live.clear()
    db.change("freeze_leases", until=micros(until))
    db.change("freeze_pushes", until=micros(until))


def grant_grace(db: StoreSession, lapsed_since: datetime, now: datetime, until: datetime) -> int:
    """Let leases that lapsed in a span of time end at `until` instead. Return how many."""
    db.live.clear()
    return db.change(
        "grant_grace", lapsed_since=micros(lapsed_since), now=micros(now), until=micros(until)
    )


# inside


def _keep_past_lease(
    db: StoreSession, stored: StoredCommand, now: datetime, how: lifecycle.LeaseEnd
) -> None:
    """Keep what the row forgets when the command is leased again."""
    command = stored.command
    db.change(
        "keep_past_lease",
        seq=stored.seq,
        place=db.next_number(),
        lease_id=command.lease_id or "",
        attempt=command.attempt,
        holder=command.lease_holder,
        credential=command.lease_credential,
        leased_at=micros(command.dispatched_at or command.created_at),
        now=micros(now),
        how=how.value,
    )
    db.change("drop_past_leases", seq=stored.seq, keep=KEPT_LEASES)


def _waits_unqueued(command: CommandRecord, now: datetime) -> bool:
    """Return True if a command has no place among the ready ones yet; a push has, at its time."""
    return lifecycle.is_delayed(command.not_before, now) and not command.is_push


def _push_time(command: CommandRecord, now: datetime) -> int:
    """Return when a command is due to be pushed that is ready now."""
    return micros(max(now, command.not_before or now))


def _note(db: StoreSession, command: CommandRecord, state: State, at: datetime) -> None:
    """Note for the meter that a command moves to a state; the commit counts it."""
    if db.meter.is_on:
        db.moves.append((command, command.state, state, at, False, False))


def _hit_one(count: int) -> None:
    if count != 1:
        raise LostUpdate(f"a guarded update hit {count} rows instead of 1")


def _end(
    db: StoreSession, query: str, stored: StoredCommand, now: datetime, **more: str | None
) -> int:
    command = stored.command
    return db.change(
        query,
        seq=stored.seq,
        was=command.state.value,
        lease_id=command.lease_id,
        now=micros(now),
        **more,
    )


def _changed(db: StoreSession, stored: StoredCommand, **changes: Any) -> CommandRecord:
    command = msgspec.structs.replace(stored.command, **changes)
    db.live.put(StoredCommand(stored.seq, command, stored.params, stored.signature))
    return command


def _ended(
    db: StoreSession,
    stored: StoredCommand,
    state: State,
    now: datetime,
    by: str | None = None,
    error_code: str | None = None,
) -> CommandRecord:
    db.live.drop(stored.seq)
    _note(db, stored.command, state, now)
    used = db.usage.changed(stored.command.deployment_id)
    used.live_commands -= 1
    if state is State.SUCCEEDED:
        used.succeeded += 1
    elif state is State.EXPIRED:
        used.expired += 1
    elif error_code == lifecycle.CANCELLED:
        used.cancelled += 1
    else:
        used.failed += 1
    if stored.command.state is State.DISPATCHED:
        used.dispatched -= 1
    elif stored.command.state is State.PENDING_UPLOAD:
        used.open_uploads -= 1
        announced, arrived = _awaited(db, stored.seq)
        used.stored_bytes -= max(0, announced - arrived)
    return msgspec.structs.replace(
        stored.command, state=state, completed_at=now, completed_by=by, error_code=error_code
    )


def _awaited(db: StoreSession, seq: int) -> tuple[int, int]:
    """Return how many bytes of awaited params were announced, and how many have arrived.

    The greater of the two counts until the command ends; then what has arrived does.
    """
    row = db.row("awaited_sizes", seq=seq)
    return (0, 0) if row is None else (row[0], row[1])


def _used_up(code: str, command: CommandRecord) -> StoredError:
    return StoredError(
        code=code, message=f"no response after {command.max_attempts} attempts, the most allowed"
    )


def _home(db: StoreSession, command: CommandRecord) -> CommandTarget:
    deployment = db.deployment(command.deployment_id)
    return command.target if deployment is None else deployment.home_of(command.target)
