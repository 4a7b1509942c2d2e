"""Epochs: what a restore asks of leases and idempotency keys of the time before it."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

from arc_protocol.errors import IdempotencyKeyUnknown
from arc_server.ports.records import Epoch
from arc_server.store.engine.rows import micros, moment, moment_or_none
from arc_server.store.engine.session import StoreSession
from arc_server.store.operations import transitions


def epoch(db: StoreSession) -> Epoch:
    """Return the epoch of today."""
    if db.epoch is None:
        [*former, today] = db.rows("epochs")
        id_, numbers_from, backed_up_at, began_at, frozen_until, keys_unknown_until = today
        db.epoch = Epoch(
            id=id_,
            former=frozenset(row[0] for row in former),
            numbers_from=numbers_from,
            backed_up_at=moment_or_none(backed_up_at),
            began_at=moment_or_none(began_at),
            frozen_until=moment_or_none(frozen_until),
            keys_unknown_until=moment_or_none(keys_unknown_until),
        )
    return db.epoch


def is_to_begin(today: Epoch) -> bool:
    """Return True before the first start after a restore."""
    return bool(today.former) and today.began_at is None


def begin(
    db: StoreSession, now: datetime, freeze_seconds: float, unknown_key_seconds: float
) -> Epoch:
    """Fulfil SweepStore.begin_epoch."""
    today = epoch(db)
    if not is_to_begin(today):
        return today
    frozen_until = now + timedelta(seconds=freeze_seconds)
    db.change(
        "begin_epoch",
        epoch=today.id,
        now=micros(now),
        frozen_until=micros(frozen_until),
        keys_unknown_until=micros(now + timedelta(seconds=unknown_key_seconds)),
    )
    transitions.freeze(db, frozen_until)
    db.epoch = None
    return epoch(db)


def frozen_below(db: StoreSession, now: datetime) -> int:
    """Return the number below which commands wait: a holder of before the restore may run them."""
    today = epoch(db)
    return today.numbers_from if today.is_frozen(now) else 0


def check_unknown_key(db: StoreSession, key: str, now: datetime) -> None:
    """Raise IdempotencyKeyUnknown for a key that may have been used in the lost time."""
    today = epoch(db)
    if today.began_at is None or today.keys_unknown_until is None:
        return
    made_at = _made_at(key)
    if (made_at is None and now < today.keys_unknown_until) or (
        made_at is not None and made_at <= today.began_at
    ):
        raise IdempotencyKeyUnknown(
            "idempotencyKey: may have been used in the time that a restore has undone; look whether"
            " the command ran, and send it with a new key if it did not",
            idempotency_key=key,
        )


def _made_at(key: str) -> datetime | None:
    """Return when a key was made, None for one that does not say so (it is no UUIDv7)."""
    try:
        made = uuid.UUID(key)
    except ValueError:
        return None
    return moment((made.int >> 80) * 1000) if made.version == 7 else None
