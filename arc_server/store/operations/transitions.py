"""Transitions of one command that was just read, each guarded and counted."""

from __future__ import annotations

from datetime import datetime

import msgspec

from arc_protocol import lifecycle
from arc_protocol.messages.base import CommandTarget, State
from arc_server.ports.records import Command, StoredError, StoredResponse, StoredSuccess
from arc_server.store.engine.rows import micros
from arc_server.store.engine.session import Session
from arc_server.store.operations import bodies

CANCELLED = StoredError(code=lifecycle.CANCELLED, message="the command was cancelled")


class LostUpdate(AssertionError):
    """A guarded update missed the row that its own transaction has just read. A bug."""


def hit_one(count: int) -> None:
    """Check what a guarded update hit. Raises LostUpdate."""
    if count != 1:
        raise LostUpdate(f"a guarded update hit {count} rows instead of 1")


def put_response(db: Session, seq: int, response: StoredResponse) -> None:
    """Store a response, in the place of an older one if there is any."""
    form, data, size, checksum = bodies.of_response(response)
    db.change("replace_response", command=seq, form=form, data=data, size=size, checksum=checksum)


def expire(db: Session, seq: int, command: Command, now: datetime) -> Command:
    """A live command whose deadline has passed → EXPIRED."""
    hit_one(
        db.change(
            "expire", seq=seq, was=command.state.value, lease_id=command.lease_id, now=micros(now)
        )
    )
    db.forget_command(seq)
    return msgspec.structs.replace(command, state=State.EXPIRED, completed_at=now)


def fail(db: Session, seq: int, command: Command, error: StoredError, now: datetime) -> Command:
    """A live command → FAILED, with an error to show."""
    hit_one(
        db.change(
            "fail", seq=seq, was=command.state.value, lease_id=command.lease_id, now=micros(now)
        )
    )
    put_response(db, seq, error)
    db.forget_command(seq)
    return msgspec.structs.replace(command, state=State.FAILED, completed_at=now)


def finish(
    db: Session, seq: int, command: Command, response: StoredResponse, now: datetime
) -> Command:
    """A DISPATCHED command → SUCCEEDED or FAILED with its holder's response."""
    if not isinstance(response, StoredSuccess):
        return fail(db, seq, command, response, now)
    hit_one(db.change("succeed", seq=seq, lease_id=command.lease_id, now=micros(now)))
    put_response(db, seq, response)
    db.forget_command(seq)
    return msgspec.structs.replace(command, state=State.SUCCEEDED, completed_at=now)


def hand_back(
    db: Session,
    seq: int,
    command: Command,
    now: datetime,
    *,
    costs_attempt: bool,
    push_at: datetime | None = None,
) -> Command:
    """A DISPATCHED command whose lease ended without a response: EXPIRED when overdue, else
    redelivered or FAILED as `lifecycle.hand_back` decides. It keeps its place in the order."""
    if lifecycle.is_overdue(command.deadline, now):
        return expire(db, seq, command, now)
    verdict = lifecycle.hand_back(
        command.attempt,
        command.max_attempts,
        costs_attempt=costs_attempt,
        cancel_requested=command.cancel_requested,
    )
    if verdict.failure_code == lifecycle.CANCELLED:
        return fail(db, seq, command, CANCELLED, now)
    if verdict.failure_code is not None:
        return fail(db, seq, command, _used_up(verdict.failure_code, command), now)
    home = _home(db, command)
    hit_one(
        db.change(
            "hand_back",
            seq=seq,
            lease_id=command.lease_id,
            attempt=verdict.attempt,
            target_id=home.resource_id,
            target_type=home.resource_type.value,
            push_at=None if push_at is None else micros(push_at),
        )
    )
    redelivered = msgspec.structs.replace(
        command, state=State.PENDING, attempt=verdict.attempt, target=home
    )
    db.remember(seq, redelivered)
    return redelivered


def _used_up(code: str, command: Command) -> StoredError:
    return StoredError(
        code=code, message=f"no response after {command.max_attempts} attempts, the most allowed"
    )


def _home(db: Session, command: Command) -> CommandTarget:
    deployment = db.deployment(command.deployment_id)
    return command.target if deployment is None else deployment.home_of(command.target)
