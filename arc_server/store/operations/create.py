"""Creating commands, and their params that come later."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import msgspec

from arc_protocol import lifecycle
from arc_protocol.errors import (
    ArcError,
    CommandNotFound,
    IdempotencyKeyReused,
    InvalidCommand,
    InvalidStateTransition,
)
from arc_protocol.messages.base import State
from arc_server.ports.records import (
    AwaitedBlob,
    Command,
    Created,
    NewCommand,
    StoredBlob,
    StoredBody,
    StoredInline,
)
from arc_server.store.engine.rows import NONE, WIDTH, command_of, micros
from arc_server.store.engine.session import KnownDeployment, Session
from arc_server.store.operations import bodies, targets, transitions


class _Key(NamedTuple):
    key_id: int
    scope: str
    names_target: int
    params_digest: bytes
    command_seq: int | None


def create(db: Session, new: NewCommand) -> Created:
    """See Store.create."""
    deployment = targets.known_or_new(db, new.deployment_id, auto_register=new.auto_register)
    resolved = targets.resolve(deployment, new.target_resource_id, auto_register=new.auto_register)
    key = None
    if new.idempotency_key is not None:
        key = _find_key(db, new, deployment, resolved)
        if key is not None and key.command_seq is not None:
            return _replay(db, new, key.params_digest, key.command_seq)
    if isinstance(resolved, ArcError):
        raise resolved
    if lifecycle.is_overdue(new.deadline, new.created_at):
        raise InvalidCommand("deadline: is not in the future", field="deadline")
    now = micros(new.created_at)
    if resolved.is_new:
        targets.register_target(db, new.deployment_id, resolved.target, now)
    deployment = targets.register_deployment(db, new.deployment_id, now)
    command = Command(
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
    )
    seq = _insert(db, command, new.params, now, new.signature)
    if new.idempotency_key is not None:
        if key is not None:
            db.change("delete_key", id=key.key_id)
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
    return Created(command=command, is_replay=False, params=new.params)


def _find_key(
    db: Session,
    new: NewCommand,
    deployment: KnownDeployment,
    resolved: targets.Resolved | ArcError,
) -> _Key | None:
    """The key that an earlier create has used.

    A repeat that names no target is the same request whatever the default target has become since.
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


def _replay(db: Session, new: NewCommand, params_digest: bytes, seq: int) -> Created:
    if params_digest != new.params_digest:
        raise IdempotencyKeyReused(
            "idempotencyKey: was used before with other params",
            idempotency_key=new.idempotency_key,
        )
    row = db.row("command_with_params", seq=seq)
    if row is None:
        raise transitions.LostUpdate("an idempotency key names a command that is not there")
    params = bodies.to_params(*row[WIDTH : WIDTH + bodies.WIDTH])
    return Created(command=command_of(row), is_replay=True, params=params)


def _insert(
    db: Session,
    command: Command,
    params: StoredInline | StoredBlob | AwaitedBlob,
    now: int,
    signature: str | None,
) -> int:
    seq = db.next_number()
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
        created_at=now,
        is_push=1 if command.is_push else 0,
        deadline=NONE if command.deadline is None else micros(command.deadline),
        ready_order=seq if command.state is State.PENDING else NONE,
        push_at=now if command.is_push else NONE,
    )
    form, data, size, checksum = bodies.of_params(params)
    db.change("insert_params", command=seq, form=form, data=data, size=size, checksum=checksum)
    if signature is not None:  # a statement of its own: most commands do without
        db.change("add_signature", command=seq, signature=bytearray(signature, "ascii"))
    db.remember(seq, command, params, signature)
    return seq


def mark_uploaded(
    db: Session, command_id: str, params: StoredBody, now: datetime
) -> Command | ArcError:
    """See Store.mark_uploaded. An error that it answers comes with a change: EXPIRED."""
    row = db.row("find_command", command_id=command_id)
    if row is None:
        raise CommandNotFound(f"no such command: {command_id}", command_id=command_id)
    seq, command = row[0], command_of(row)
    if command.state is not State.PENDING_UPLOAD:
        raise _not_awaited(command)
    if lifecycle.is_overdue(command.deadline, now):
        return _not_awaited(transitions.expire(db, seq, command, now))
    form, data, size, checksum = bodies.of_params(params)
    db.change("replace_params", command=seq, form=form, data=data, size=size, checksum=checksum)
    transitions.hit_one(
        db.change(
            "ready_after_upload",
            seq=seq,
            ready_order=db.next_number(),
            push_at=micros(now) if command.is_push else None,
        )
    )
    db.forget_command(seq)
    return msgspec.structs.replace(command, state=State.PENDING)


def _not_awaited(command: Command) -> InvalidStateTransition:
    return InvalidStateTransition(
        f"the command is {command.state}, not waiting for an upload",
        **{"from": command.state, "to": State.PENDING},
    )
