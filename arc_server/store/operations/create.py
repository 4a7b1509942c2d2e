"""Creating commands, and their params that come later."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from arc_protocol import lifecycle
from arc_protocol.errors import (
    ArcError,
    Conflict,
    IdempotencyKeyReused,
    InvalidCommand,
    InvalidStateTransition,
)
from arc_protocol.messages.base import State
from arc_server.ports.records import (
    AwaitedBlob,
    CommandRecord,
    Created,
    NewCommand,
    PushLease,
    StoredBody,
)
from arc_server.store.engine.deployments import KnownDeployment
from arc_server.store.engine.rows import StoredCommand, micros, stored_command
from arc_server.store.engine.session import StoreSession
from arc_server.store.operations import bodies, epochs, lookup, quotas, targets, transitions


class _Key(NamedTuple):
    scope: str
    names_target: int
    params_digest: bytes
    command_seq: int | None


def create(db: StoreSession, new: NewCommand) -> Created:
    """Fulfil CommandStore.create."""
    deployment = targets.known_or_new(db, new.deployment_id, auto_register=new.auto_register)
    resolved = targets.resolve(deployment, new.target_resource_id, auto_register=new.auto_register)
    if new.idempotency_key is not None:
        key = _find_key(db, new, deployment, resolved)
        if key is not None and key.command_seq is None:
            raise Conflict(
                "idempotencyKey: was used before, and its command is no longer kept",
                idempotency_key=new.idempotency_key,
            )
        if key is not None and key.command_seq is not None:
            return _replay(db, new, key.params_digest, key.command_seq)
        epochs.check_unknown_key(db, new.idempotency_key, new.created_at)
    if isinstance(resolved, ArcError):
        raise resolved
    if lifecycle.is_overdue(new.deadline, new.created_at):
        raise InvalidCommand("deadline: is not in the future", field="deadline")
    if new.quotas is not None:
        quotas.check_create(
            db,
            new.deployment_id,
            new.quotas,
            is_upload=isinstance(new.params, AwaitedBlob),
            has_key=new.idempotency_key is not None,
        )
    now = micros(new.created_at)
    if resolved.is_new:
        targets.register_target(db, new.deployment_id, resolved.target, now)
    deployment = targets.register_deployment(db, new.deployment_id, now)
    command = CommandRecord(
        command_id=new.command_id,
        deployment_id=new.deployment_id,
        target=resolved.target,
        command=new.command,
        state=State.PENDING_UPLOAD if isinstance(new.params, AwaitedBlob) else State.PENDING,
        attempt=1,
        max_attempts=new.max_attempts,
        created_at=new.created_at,
        is_push=deployment.push_url is not None,
        deadline=new.deadline,
        created_by=new.created_by,
        retry_of=new.retry_of,
    )
    seq = transitions.insert(db, command, new.params, new.signature)
    if command.is_push and new.push_lease and not isinstance(new.params, AwaitedBlob):
        stored = StoredCommand(seq, command, new.params, new.signature)
        command = _push(db, stored, new.push_lease, new.created_at)
    if new.idempotency_key is not None:
        db.change(
            "insert_key",
            deployment_id=new.deployment_id,
            command=new.command,
            key=new.idempotency_key,
            scope=deployment.key_scope(resolved.target),
            names_target=0 if new.target_resource_id is None else 1,
            params_digest=bytearray(new.params_digest),
            command_seq=seq,
            created_at=now,
        )
        db.usage.changed(new.deployment_id).idempotency_keys += 1
    return Created(command=command, is_replay=False, params=new.params)


def _find_key(
    db: StoreSession,
    new: NewCommand,
    deployment: KnownDeployment,
    resolved: targets.Resolved | ArcError,
) -> _Key | None:
    """Return the key that an earlier create has used.

    A repeat that names no target stays the same request when the default target has changed since.
    """
    rows = db.rows(
        "find_keys",
        deployment_id=new.deployment_id,
        command=new.command,
        key=new.idempotency_key,
    )
    if not rows:
        return None
    keys = [_Key(*row) for row in rows]
    if new.target_resource_id is None:
        for key in keys:
            if not key.names_target:
                return key
    if isinstance(resolved, ArcError):
        return None
    scope = deployment.key_scope(resolved.target)
    return next((key for key in keys if key.scope == scope), None)


def _replay(db: StoreSession, new: NewCommand, params_digest: bytes, seq: int) -> Created:
    if params_digest != new.params_digest:
        raise IdempotencyKeyReused(
            "idempotencyKey: was used before with other params",
            idempotency_key=new.idempotency_key,
        )
    row = db.row("command_with_params", seq=seq)
    if row is None:
        raise transitions.LostUpdate("an idempotency key names a command that is not there")
    stored = bodies.command_with_params(row)
    assert stored.params is not None
    return Created(command=stored.command, is_replay=True, params=stored.params)


def mark_uploaded(
    db: StoreSession,
    command_id: str,
    params: StoredBody,
    now: datetime,
    push_lease: PushLease | None,
) -> CommandRecord | ArcError:
    """Fulfil CommandStore.mark_uploaded. An error that is returned comes with a change: EXPIRED."""
    stored = lookup.find(db, command_id)
    if stored.command.state is not State.PENDING_UPLOAD:
        raise _not_awaited(stored.command)
    if lifecycle.is_overdue(stored.command.deadline, now):
        return _not_awaited(transitions.expire(db, stored, now))
    command = transitions.make_ready(db, stored, params, now)
    if not command.is_push or push_lease is None:
        return command
    return _push(db, lookup.with_params(db, stored.seq), push_lease, now)


def mark_arrived(db: StoreSession, command_id: str, size: int) -> bool:
    """Fulfil CommandStore.mark_arrived."""
    row = db.row("find_command", command_id=command_id)
    if row is None:
        return False
    stored = stored_command(row)
    if stored.command.state is not State.PENDING_UPLOAD:
        return False
    transitions.put_arrived(db, stored, size)
    return True


def _push(
    db: StoreSession, stored: StoredCommand, lease: PushLease, now: datetime
) -> CommandRecord:
    """Dispatch a command that has just become ready, for the outbox to send."""
    return transitions.dispatch(db, stored, lease.lease_id, None, now, lease.expires_at)


def _not_awaited(command: CommandRecord) -> InvalidStateTransition:
    return InvalidStateTransition(
        f"the command is {command.state}, not waiting for an upload",
        **{"from": command.state, "to": State.PENDING},
    )
