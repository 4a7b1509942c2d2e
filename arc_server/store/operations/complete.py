"""What becomes of a command: a response, a cancel, a failure, and what time does to it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from arc_protocol import lifecycle
from arc_protocol.errors import ArcError, CommandNotFound, InvalidStateTransition, LeaseLost
from arc_protocol.messages.base import State
from arc_server.ports.records import (
    Command,
    Completion,
    StoredBody,
    StoredResponse,
    StoredSuccess,
    Submission,
)
from arc_server.store.engine.rows import command_of, micros
from arc_server.store.engine.session import Session
from arc_server.store.operations import bodies, transitions


def complete(
    db: Session,
    command_id: str,
    lease_id: str | None,
    response: StoredResponse,
    now: datetime,
) -> Completion:
    """See Store.complete."""
    seq, command = _find(db, command_id)
    if command.state in lifecycle.TERMINAL:
        return Completion(command=command, changed=False)
    if lifecycle.is_overdue(command.deadline, now):
        return Completion(command=transitions.expire(db, seq, command, now), changed=True)
    if lease_id is not None and lease_id != command.lease_id:
        raise LeaseLost(
            "the command has been leased again since, or never under this lease",
            command_id=command_id,
            lease_id=lease_id,
        )
    if command.state is not State.DISPATCHED:
        if lease_id is None:
            raise InvalidStateTransition(
                f"the command is {command.state}, not dispatched",
                **{"from": command.state, "to": _end_of(response)},
            )
        transitions.hit_one(db.change("dispatch_again", seq=seq, lease_id=lease_id))
        command = msgspec.structs.replace(command, state=State.DISPATCHED)
    return Completion(command=transitions.finish(db, seq, command, response, now), changed=True)


def complete_all(
    db: Session, submissions: Sequence[Submission], now: datetime, deployment_id: str | None
) -> Sequence[Completion | ArcError]:
    """See Store.complete_all. An error of one has changed nothing: it looked first."""
    answers: list[Completion | ArcError] = []
    for given in submissions:
        try:
            if deployment_id is not None:
                _, command = _find(db, given.command_id)
                if command.deployment_id != deployment_id:
                    raise _not_found(given.command_id)
            answers.append(complete(db, given.command_id, given.lease_id, given.response, now))
        except ArcError as error:
            answers.append(error)
    return answers


def _end_of(response: StoredResponse) -> State:
    return State.SUCCEEDED if isinstance(response, StoredSuccess) else State.FAILED


def cancel(db: Session, command_id: str, now: datetime) -> Completion:
    """See Store.cancel."""
    seq, command = _find(db, command_id)
    if command.state in lifecycle.TERMINAL:
        return Completion(command=command, changed=False)
    if lifecycle.is_overdue(command.deadline, now):
        return Completion(command=transitions.expire(db, seq, command, now), changed=True)
    if command.state is not State.DISPATCHED:
        ended = transitions.fail(db, seq, command, transitions.CANCELLED, now)
        return Completion(command=ended, changed=True)
    transitions.hit_one(db.change("request_cancel", seq=seq, lease_id=command.lease_id))
    asked = msgspec.structs.replace(command, cancel_requested=True)
    db.remember(seq, asked)
    return Completion(command=asked, changed=True)


def write_payload(
    db: Session, command_id: str, params: StoredBody | None, response: StoredResponse | None
) -> None:
    """See Store.write_payload."""
    row = db.row("find_seq", command_id=command_id)
    if row is None:
        raise _not_found(command_id)
    if params is not None:
        form, data, size, checksum = bodies.of_params(params)
        db.change(
            "replace_params", command=row[0], form=form, data=data, size=size, checksum=checksum
        )
        db.unreadable.discard(row[0])
        db.forget_command(row[0])
    if response is not None:
        transitions.put_response(db, row[0], response)


def expire_due(db: Session, now: datetime, limit: int) -> Sequence[Command]:
    """See Store.expire_due."""
    rows = db.rows("overdue", now=micros(now), limit=limit)
    return [transitions.expire(db, row[0], command_of(row), now) for row in rows]


def requeue_lapsed(db: Session, now: datetime, limit: int) -> Sequence[Command]:
    """See Store.requeue_lapsed."""
    rows = db.rows("lapsed", now=micros(now), limit=limit)
    return [
        transitions.hand_back(db, row[0], command_of(row), now, costs_attempt=True) for row in rows
    ]


def forget_keys(db: Session, before: datetime, limit: int) -> int:
    """See Store.forget_idempotency_keys."""
    return db.change("forget_keys", before=micros(before), limit=limit)


def shift_leases(db: Session, seconds: float) -> int:
    """See Store.shift_leases."""
    db.forget_commands()
    shift = round(seconds * 1_000_000)
    db.change("shift_pushes", shift=shift)
    db.change("shift_sign_of_life", shift=shift)
    return db.change("shift_leases", shift=shift)


def grant_grace(db: Session, lapsed_since: datetime, now: datetime, until: datetime) -> int:
    """See Store.grant_grace."""
    db.forget_commands()
    return db.change(
        "grant_grace", lapsed_since=micros(lapsed_since), now=micros(now), until=micros(until)
    )


def sign_of_life(db: Session, now: datetime) -> None:
    """See Store.sign_of_life."""
    db.change("put_sign_of_life", now=micros(now))


def _find(db: Session, command_id: str) -> tuple[int, Command]:
    known = db.recall_by_id(command_id)
    if known is not None:
        return known
    row = db.row("find_command", command_id=command_id)
    if row is None:
        raise _not_found(command_id)
    return row[0], command_of(row)


def _not_found(command_id: str) -> CommandNotFound:
    return CommandNotFound(f"no such command: {command_id}", command_id=command_id)
