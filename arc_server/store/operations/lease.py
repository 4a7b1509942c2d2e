"""Leasing commands, renewing leases and releasing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec

from arc_protocol import lifecycle
from arc_protocol.errors import LeaseNotFound, SerializationFailed
from arc_protocol.messages.base import IMPLICIT_TARGET, CommandTarget
from arc_server.ports.reach import Reach
from arc_server.ports.records import (
    AwaitedBlob,
    CommandRecord,
    DamagedBody,
    Grant,
    Granted,
    LeaseQuery,
    Renewal,
    StoredBlob,
    StoredError,
    StoredInline,
)
from arc_server.store.engine.rows import micros
from arc_server.store.engine.session import StoreSession
from arc_server.store.operations import epochs, lookup, pushes, targets, transitions

ENDED_AT_ONCE: Final = 200
"""The most overdue or damaged commands that one pass over a queue ends."""
READ_AT_ONCE: Final = 64
"""The most commands whose params are read into memory before they are handed out."""


class Pass(NamedTuple):
    """One pass over a queue. `is_cut`: it ended `ENDED_AT_ONCE` commands and went no further."""

    granted: Granted
    is_cut: bool = False


class _Target(NamedTuple):
    target: CommandTarget | None
    type_mismatch: bool = False
    inherited: bool = False
    is_full: bool = False
    is_unknown: bool = False


def lease(db: StoreSession, query: LeaseQuery, now: datetime) -> Pass:
    """Fulfil LeaseStore.lease in bounded work: the caller asks again after a pass that was cut."""
    found = _leased_target(db, query, now)
    if found.target is None:
        return Pass(
            Granted(
                grants=(),
                type_mismatch=found.type_mismatch,
                is_full=found.is_full,
                is_unknown=found.is_unknown,
            )
        )
    result = _hand_out(
        db,
        "ready_commands",
        {
            "deployment_id": query.deployment_id,
            "target_id": found.target.resource_id,
            "frozen_below": epochs.frozen_below(db, now),
        },
        query.lease_ids,
        query.lease_seconds,
        query.holder,
        now,
        query.credential,
        max_bytes=query.max_bytes,
    )
    if not found.inherited:
        return result
    return result._replace(granted=msgspec.structs.replace(result.granted, inherited=True))


def lease_push(
    db: StoreSession,
    lease_ids: Sequence[str],
    lease_seconds: float,
    now: datetime,
    rooms: Mapping[str, int] | None,
    per_deployment: int | None,
    sending: Mapping[str, int] | None,
) -> Pass:
    """Fulfil PushStore.lease_push, as `lease` does."""
    grants: list[Grant] = []
    ended: list[CommandRecord] = []
    at = micros(now)
    due = [first for first in pushes.first_pushes(db) if first.push_at <= at]
    due.sort(key=lambda first: (sending or {}).get(first.deployment_id, 0))  # stable
    for first in due:
        left = lease_ids[len(grants) :]
        room = len(left) if per_deployment is None else per_deployment
        left = left[: (rooms or {}).get(first.deployment_id, room)]
        if not left:
            continue
        where = {"now": at, "deployment_id": first.deployment_id}
        granted, is_cut = _hand_out(db, "due_pushes", where, left, lease_seconds, None, now)
        grants += granted.grants
        ended += granted.ended
        if is_cut:
            return Pass(Granted(grants=grants, ended=ended), is_cut=True)
    return Pass(Granted(grants=grants, ended=ended))


def _leased_target(db: StoreSession, query: LeaseQuery, now: datetime) -> _Target:
    """Return the target whose commands a query gets, after registering what it may register."""
    deployment = db.deployment(query.deployment_id)
    if deployment is None:
        if not query.auto_register:
            return _Target(None, is_unknown=True)
        deployment = targets.register_deployment(db, query.deployment_id, micros(now))
    named = query.target
    if named is None:
        return _Target(deployment.default_target)
    known = deployment.targets.get(named.resource_id)
    if known is None and query.auto_register:
        if not named.resource_id or ":" in named.resource_id:
            return _Target(None)
        if len(deployment.targets) >= query.max_targets:
            return _Target(None, is_full=True)
        inherited = targets.register_target(db, query.deployment_id, named, micros(now))
        return _Target(named, inherited=inherited)
    if known is None and not deployment.has_targets:
        known = IMPLICIT_TARGET if named.resource_id == IMPLICIT_TARGET.resource_id else None
    if known is None:
        return _Target(None, is_unknown=True)
    if known.resource_type is not named.resource_type:
        return _Target(None, type_mismatch=True)
    return _Target(known)


def _hand_out(
    db: StoreSession,
    queue: str,
    where: dict[str, Any],
    lease_ids: Sequence[str],
    lease_seconds: float,
    holder: str | None,
    now: datetime,
    credential: str | None = None,
    *,
    max_bytes: int | None = None,
) -> Pass:
    until = now + timedelta(seconds=lease_seconds)
    grants: list[Grant] = []
    ended: list[CommandRecord] = []
    granted_bytes = 0
    while len(grants) < len(lease_ids):
        wanted = min(len(lease_ids) - len(grants), READ_AT_ONCE)
        queued = lookup.queued(db, queue, limit=wanted, **where)
        for stored in queued:
            params = stored.params
            if lifecycle.is_overdue(stored.command.deadline, now):
                ended.append(transitions.expire(db, stored, now))
            elif isinstance(params, StoredInline | StoredBlob):
                granted_bytes += len(params.data) if isinstance(params, StoredInline) else 0
                if grants and max_bytes is not None and granted_bytes > max_bytes:
                    return Pass(Granted(grants=grants, ended=ended))
                lease_id = lease_ids[len(grants)]
                leased = transitions.dispatch(db, stored, lease_id, holder, now, until, credential)
                grants.append(Grant(command=leased, params=params, signature=stored.signature))
            else:
                ended.append(transitions.fail(db, stored, _damaged(params), now))
        if len(queued) < wanted:
            break
        if len(ended) >= ENDED_AT_ONCE:
            return Pass(Granted(grants=grants, ended=ended), is_cut=True)
    return Pass(Granted(grants=grants, ended=ended))


def _damaged(params: AwaitedBlob | DamagedBody | None) -> StoredError:
    reason = params.reason if isinstance(params, DamagedBody) else "they were never uploaded"
    return StoredError(
        code=SerializationFailed.code, message=f"the params cannot be read back: {reason}"
    )


def renew(
    db: StoreSession,
    lease_ids: Sequence[str],
    lease_seconds: float,
    now: datetime,
    within: Reach,
) -> Renewal:
    """Fulfil LeaseStore.renew."""
    until = now + timedelta(seconds=lease_seconds)
    renewed: list[CommandRecord] = []
    lost: list[str] = []
    kept: list[str] = []
    today = epochs.epoch(db)
    is_frozen = today.is_frozen(now)
    for lease_id in dict.fromkeys(lease_ids):
        try:
            stored = lookup.find_lease(db, lease_id, within)
        except LeaseNotFound:
            # Its command may have been leased after the backup: the holder goes on, and hands its
            # work in by the command's id.
            (kept if is_frozen and today.is_former(lease_id) else lost).append(lease_id)
        else:
            renewed.append(transitions.renew(db, stored, until))
    return Renewal(renewed=renewed, lost=lost, kept=kept, kept_until=today.frozen_until)


def release(
    db: StoreSession,
    lease_id: str,
    now: datetime,
    costs_attempt: bool,
    within: Reach,
    push_after: datetime | None,
) -> CommandRecord:
    """Fulfil LeaseStore.release."""
    stored = lookup.find_lease(db, lease_id, within)
    how = lifecycle.LeaseEnd.RELEASED if costs_attempt else lifecycle.LeaseEnd.RETURNED
    return transitions.hand_back(
        db, stored, now, costs_attempt=costs_attempt, how=how, push_at=push_after
    )
