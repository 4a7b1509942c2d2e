"""Changes that time makes with no request: deadlines, lapsed leases, old keys, signs of life."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from arc_protocol.lifecycle import LeaseEnd
from arc_server.ports.records import CommandRecord
from arc_server.store.engine.rows import StoredCommand, micros, moment
from arc_server.store.engine.session import StoreSession
from arc_server.store.operations import epochs, lookup, transitions


def expire_due(db: StoreSession, now: datetime, limit: int) -> Sequence[CommandRecord]:
    """Fulfil CommandLookup.expire_due."""
    overdue = lookup.find_all(db, "overdue", now=micros(now), limit=limit)
    return [transitions.expire(db, stored, now) for stored in overdue]


def requeue_lapsed(db: StoreSession, now: datetime, limit: int) -> Sequence[CommandRecord]:
    """Fulfil SweepStore.requeue_lapsed."""
    lapsed = lookup.find_all(db, "lapsed", now=micros(now), limit=limit)
    return [_taken_back(db, stored, now, LeaseEnd.LAPSED) for stored in lapsed]


def requeue_revoked(db: StoreSession, now: datetime, limit: int) -> Sequence[CommandRecord]:
    """Fulfil RevocationStore.requeue_revoked."""
    held = lookup.find_all(db, "leases_of_revoked", limit=limit)
    return [_taken_back(db, stored, now, LeaseEnd.REVOKED) for stored in held]


def release_delayed(db: StoreSession, now: datetime, limit: int) -> Sequence[CommandRecord]:
    """Fulfil SweepStore.release_delayed."""
    if epochs.frozen_below(db, now):
        return ()
    delayed = lookup.find_all(db, "delayed", now=micros(now), limit=limit)
    for stored in delayed:
        transitions.release_delayed(db, stored)
    return [stored.command for stored in delayed]


def forget_keys(db: StoreSession, before: datetime, limit: int) -> int:
    """Fulfil SweepStore.forget_idempotency_keys."""
    return db.change("forget_keys", before=micros(before), limit=limit)


def shift_leases(db: StoreSession, seconds: float) -> int:
    """Fulfil SweepStore.shift_leases."""
    db.change("shift_sign_of_life", shift=round(seconds * 1_000_000))
    return transitions.shift_leases(db, seconds)


def sign_of_life(db: StoreSession, now: datetime) -> None:
    """Fulfil SweepStore.sign_of_life."""
    db.change("put_sign_of_life", now=micros(now))


def last_sign_of_life(db: StoreSession) -> datetime | None:
    """Fulfil SweepStore.last_sign_of_life."""
    row = db.row("last_sign_of_life")
    return None if row is None else moment(row[0])


def has_live_leases(db: StoreSession) -> bool:
    """Fulfil SweepStore.has_live_leases."""
    return db.rows("has_live_leases") == [(1,)]


def _taken_back(
    db: StoreSession, stored: StoredCommand, now: datetime, how: LeaseEnd
) -> CommandRecord:
    return transitions.hand_back(db, stored, now, costs_attempt=True, how=how)
