"""The port for sweeps: what time does to commands and leases with no request."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from arc_server.ports.commands import CommandLookup
from arc_server.ports.records import CommandRecord, Epoch


class SweepStore(CommandLookup, Protocol):
    """Bounded batches of overdue work, and the sign of life that tells an outage."""

    async def requeue_lapsed(self, now: datetime, limit: int) -> Sequence[CommandRecord]:
        """Redeliver or fail DISPATCHED commands whose lease has lapsed, by `hand_back`.

        At most `limit`, the longest lapsed first. Return them as they stand now.
        """
        ...

    async def release_delayed(self, now: datetime, limit: int) -> Sequence[CommandRecord]:
        """Let PENDING commands be leased whose `not_before` has come, behind those that are ready.

        At most `limit`, the earliest first; none while a restore keeps older commands waiting.
        Return them.
        """
        ...

    async def forget_idempotency_keys(self, before: datetime, limit: int) -> int:
        """Drop keys made before that instant whose command is gone. Return how many."""
        ...

    async def shift_leases(self, seconds: float) -> int:
        """Move the end of every live lease, the due times of pushes and the last sign of life.

        For a wall clock that has jumped by that much. Return how many leases moved.
        """
        ...

    async def grant_grace(self, lapsed_since: datetime, now: datetime, until: datetime) -> int:
        """Let leases that lapsed between `lapsed_since` and `now` end at `until` instead.

        Return how many.
        """
        ...

    async def epoch(self) -> Epoch:
        """Return the epoch of today, begun or not."""
        ...

    async def begin_epoch(
        self, now: datetime, *, freeze_seconds: float, unknown_key_seconds: float
    ) -> Epoch:
        """Return the epoch. In the first start after a restore, let it begin now.

        For `freeze_seconds` leases of before stay good and older commands are not leased; for
        `unknown_key_seconds` idempotency keys are refused that may have been used before.
        """
        ...

    async def sign_of_life(self, now: datetime) -> None:
        """Record that the server is up. The record never moves back."""
        ...

    async def last_sign_of_life(self) -> datetime | None:
        """Return when the server was last up, None on a fresh database."""
        ...

    async def has_live_leases(self) -> bool:
        """Return True if any command is DISPATCHED: only then must signs of life be durable."""
        ...
