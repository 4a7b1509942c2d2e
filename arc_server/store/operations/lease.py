"""Handing out commands under leases, renewing them, taking them back."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec

from arc_protocol import lifecycle
from arc_protocol.errors import LeaseNotFound, SerializationFailed
from arc_protocol.messages.base import IMPLICIT_TARGET, CommandTarget, State
from arc_server.ports.records import (
    AwaitedBlob,
    Command,
    DamagedBody,
    Grant,
    Granted,
    LeaseQuery,
    Renewal,
    StoredError,
    StoredParams,
)
from arc_server.store.engine.rows import WIDTH, Row, command_of, micros
from arc_server.store.engine.session import Again, Session
from arc_server.store.operations import bodies, targets, transitions

ENDED_AT_ONCE: Final = 200
"""How many overdue or damaged commands one look at a queue ends at most."""


class Look(NamedTuple):
    """One look at a queue. `is_cut`: it ended `ENDED_AT_ONCE` commands and saw no further."""

    granted: Granted
    is_cut: bool = False


class _Candidate(NamedTuple):
    seq: int
    command: Command
    params: StoredParams
    signature: str | None


class _Target(NamedTuple):
    target: CommandTarget | None
    type_mismatch: bool = False
    inherited: bool = False


def lease(db: Session, query: LeaseQuery, now: datetime) -> Look:
    """See Store.lease; bounded work, so that it may have to be asked again."""
    found = _leased_target(db, query, now)
    if found.target is None:
        return Look(Granted(grants=(), type_mismatch=found.type_mismatch))
    look = _hand_out(
        db,
        "ready_commands",
        {"deployment_id": query.deployment_id, "target_id": found.target.resource_id},
        query.lease_ids,
        query.lease_seconds,
        query.holder,
        now,
    )
    if not found.inherited:
        return look
    return look._replace(granted=msgspec.structs.replace(look.granted, inherited=True))


def lease_push(db: Session, lease_ids: Sequence[str], lease_seconds: float, now: datetime) -> Look:
    """See Store.lease_push."""
    return _hand_out(db, "due_pushes", {"now": micros(now)}, lease_ids, lease_seconds, None, now)


def _leased_target(db: Session, query: LeaseQuery, now: datetime) -> _Target:
    """Whose commands a query gets, after registering what it may register."""
    deployment = db.deployment(query.deployment_id)
    if deployment is None:
        if not query.auto_register:
            return _Target(None)
        deployment = targets.register_deployment(db, query.deployment_id, micros(now))
    named = query.target
    if named is None:
        return _Target(deployment.default_target)
    known = deployment.targets.get(named.resource_id)
    if known is None and query.auto_register:
        if not named.resource_id or ":" in named.resource_id:
            return _Target(None)
        inherited = targets.register_target(db, query.deployment_id, named, micros(now))
        return _Target(named, inherited=inherited)
    if known is None and not deployment.targets:
        known = IMPLICIT_TARGET if named.resource_id == IMPLICIT_TARGET.resource_id else None
    if known is None:
        return _Target(None)
    if known.resource_type is not named.resource_type:
        return _Target(None, type_mismatch=True)
    return _Target(known)


def _hand_out(
    db: Session,
    candidates: str,
    where: dict[str, Any],
    lease_ids: Sequence[str],
    lease_seconds: float,
    holder: str | None,
    now: datetime,
) -> Look:
    until = now + timedelta(seconds=lease_seconds)
    grants: list[Grant] = []
    ended: list[Command] = []
    while len(grants) < len(lease_ids):
        wanted = len(lease_ids) - len(grants)
        seen = 0
        for seq, command, params, signature in _candidates(db, candidates, where, wanted):
            seen += 1
            if lifecycle.is_overdue(command.deadline, now):
                ended.append(transitions.expire(db, seq, command, now))
            elif isinstance(params, AwaitedBlob | DamagedBody):
                ended.append(transitions.fail(db, seq, command, _damaged(params), now))
            else:
                lease_id = lease_ids[len(grants)]
                leased = _dispatch(db, seq, command, lease_id, holder, now, until)
                grants.append(Grant(command=leased, params=params, signature=signature))
        if seen < wanted:
            break
        if len(ended) >= ENDED_AT_ONCE:
            return Look(Granted(grants=grants, ended=ended), is_cut=True)
    return Look(Granted(grants=grants, ended=ended))


def _candidates(db: Session, query: str, where: dict[str, Any], limit: int) -> Iterator[_Candidate]:
    """The first ready commands of a queue with their params.

    Raises Again when params turn out to stand on damaged pages: SQLite lets nothing be written in
    that transaction any more. In the next one it is known which.
    """
    unreadable = len(db.unreadable)
    found = [_with_params(db, seq) for (seq,) in db.rows(query, limit=limit, **where)]
    if len(db.unreadable) > unreadable:
        raise Again
    yield from found


def _with_params(db: Session, seq: int) -> _Candidate:
    command, params = db.recall(seq)
    if command is not None and params is not None:
        return _Candidate(seq, command, params, db.signature(seq))
    if seq not in db.unreadable:
        try:
            [row] = db.rows("command_with_params", seq=seq)
            params = bodies.to_params(*row[WIDTH : WIDTH + bodies.WIDTH])
            signature = bodies.to_signature(row[WIDTH + bodies.WIDTH])
            return _Candidate(seq, command_of(row), params, signature)
        except sqlite3.DatabaseError:
            db.unreadable.add(seq)
    [row] = db.rows("command_alone", seq=seq)
    return _Candidate(seq, command_of(row), bodies.UNREADABLE, None)


def _damaged(params: AwaitedBlob | DamagedBody) -> StoredError:
    reason = params.reason if isinstance(params, DamagedBody) else "they were never uploaded"
    return StoredError(
        code=SerializationFailed.code, message=f"the params cannot be read back: {reason}"
    )


def _dispatch(
    db: Session,
    seq: int,
    command: Command,
    lease_id: str,
    holder: str | None,
    now: datetime,
    until: datetime,
) -> Command:
    """PENDING → DISPATCHED. A push is sent again under the lease that it was first sent with."""
    lease_attempt = command.attempt
    if command.is_push and command.lease_id is not None:
        lease_id, lease_attempt = command.lease_id, command.lease_attempt or command.attempt
    transitions.hit_one(
        db.change(
            "dispatch",
            seq=seq,
            lease_id=lease_id,
            lease_attempt=lease_attempt,
            expires_at=micros(until),
            holder=holder,
            now=micros(now),
        )
    )
    leased = msgspec.structs.replace(
        command,
        state=State.DISPATCHED,
        dispatched_at=now,
        lease_id=lease_id,
        lease_attempt=lease_attempt,
        lease_expires_at=until,
        lease_holder=holder,
    )
    db.remember(seq, leased)
    return leased


def renew(
    db: Session,
    lease_ids: Sequence[str],
    lease_seconds: float,
    now: datetime,
    deployment_id: str | None,
) -> Renewal:
    """See Store.renew."""
    until = now + timedelta(seconds=lease_seconds)
    renewed: list[Command] = []
    lost: list[str] = []
    for lease_id in dict.fromkeys(lease_ids):
        row = _live(db, lease_id, deployment_id)
        if row is None:
            lost.append(lease_id)
            continue
        command = command_of(row)
        expires_at = max(until, command.lease_expires_at or until)
        transitions.hit_one(
            db.change("renew", seq=row[0], lease_id=lease_id, expires_at=micros(expires_at))
        )
        renewed.append(msgspec.structs.replace(command, lease_expires_at=expires_at))
        db.remember(row[0], renewed[-1])
    return Renewal(renewed=renewed, lost=lost)


def release(
    db: Session,
    lease_id: str,
    now: datetime,
    costs_attempt: bool,
    deployment_id: str | None,
    push_after: datetime | None,
) -> Command:
    """See Store.release."""
    row = _live(db, lease_id, deployment_id)
    if row is None:
        raise LeaseNotFound(f"no such lease, or it has ended: {lease_id}", lease_id=lease_id)
    return transitions.hand_back(
        db, row[0], command_of(row), now, costs_attempt=costs_attempt, push_at=push_after
    )


def _live(db: Session, lease_id: str, deployment_id: str | None) -> Row | None:
    """The command that is DISPATCHED under a lease, unless it is another deployment's."""
    row = db.row("find_lease", lease_id=lease_id)
    if row is None or (deployment_id is not None and row[2] != deployment_id):
        return None
    return row
