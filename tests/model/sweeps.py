"""Sweeps of the model: deadlines, lapsed leases, and retention."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from arc_protocol import lifecycle
from arc_protocol.messages.base import State
from arc_server.ports.records import (
    FIRST_EPOCH,
    AwaitedBlob,
    CommandRecord,
    Epoch,
    Purged,
    StoredBlob,
    StoredSuccess,
    StripMark,
    Stripped,
)
from arc_server.store.operations.bodies import GONE
from arc_server.store.operations.retention import ABANDONED
from tests.model.records import Said, StoredCommand, mark_of
from tests.model.state import ModelState


class ModelSweeps(ModelState):
    """Expires, requeues and purges."""

    async def expire_due(self, now: datetime, limit: int) -> Sequence[CommandRecord]:
        """See Store."""
        overdue = self._live(lambda command: lifecycle.is_overdue(command.deadline, now))
        overdue.sort(key=lambda stored: (stored.command.deadline or now, stored.seq))
        return [self._expire(stored, now) for stored in overdue[:limit]]

    async def requeue_lapsed(self, now: datetime, limit: int) -> Sequence[CommandRecord]:
        """See Store."""
        lapsed = self._leases(lambda expires_at: expires_at <= now)
        lapsed.sort(key=lambda stored: (stored.command.lease_expires_at or now, stored.seq))
        how = lifecycle.LeaseEnd.LAPSED
        return [
            self._hand_back(stored, now, costs_attempt=True, how=how) for stored in lapsed[:limit]
        ]

    async def requeue_revoked(self, now: datetime, limit: int) -> Sequence[CommandRecord]:
        """See Store."""
        revoked = await self.revoked_ids()
        held = self._live(
            lambda command: (
                command.state is State.DISPATCHED and command.lease_credential in revoked
            )
        )
        how = lifecycle.LeaseEnd.REVOKED
        return [
            self._hand_back(stored, now, costs_attempt=True, how=how) for stored in held[:limit]
        ]

    async def release_delayed(self, now: datetime, limit: int) -> Sequence[CommandRecord]:
        """See Store."""
        delayed = self._live(
            lambda command: command.not_before is not None and command.not_before <= now
        )
        delayed = [
            stored
            for stored in delayed
            if stored.ready_order is None and stored.command.state is State.PENDING
        ]
        delayed.sort(key=lambda stored: (stored.command.not_before or now, stored.seq))
        for stored in delayed[:limit]:
            stored.ready_order = self._next_number()
        return [stored.command for stored in delayed[:limit]]

    async def forget_idempotency_keys(self, before: datetime, limit: int) -> int:
        """See Store."""
        self._check_open()
        forgotten = 0
        for keys in self._keys.values():
            for key in list(keys):
                is_orphan = key.command_id not in self._commands
                if is_orphan and key.created_at < before and forgotten < limit:
                    keys.remove(key)
                    forgotten += 1
        return forgotten

    async def shift_leases(self, seconds: float) -> int:
        """See Store."""
        shift = timedelta(seconds=seconds)
        live = self._leases(lambda _: True)
        for stored in live:
            until = stored.command.lease_expires_at
            self._set(stored, lease_expires_at=None if until is None else until + shift)
        for stored in self._live(lambda command: command.is_push):
            if stored.push_at is not None and stored.push_at != stored.command.not_before:
                stored.push_at += shift
        if self._sign_of_life is not None:
            self._sign_of_life += shift
        return len(live)

    async def grant_grace(self, lapsed_since: datetime, now: datetime, until: datetime) -> int:
        """See Store."""
        lapsed = self._leases(lambda expires_at: lapsed_since <= expires_at <= now)
        for stored in lapsed:
            self._set(stored, lease_expires_at=until)
        return len(lapsed)

    async def epoch(self) -> Epoch:
        """See Store."""
        return FIRST_EPOCH

    async def begin_epoch(
        self, now: datetime, *, freeze_seconds: float, unknown_key_seconds: float
    ) -> Epoch:
        """See Store. Nothing restores the model."""
        return FIRST_EPOCH

    async def sign_of_life(self, now: datetime) -> None:
        """See Store."""
        self._check_open()
        self._sign_of_life = max(now, self._sign_of_life or now)

    async def last_sign_of_life(self) -> datetime | None:
        """See Store."""
        self._check_open()
        return self._sign_of_life

    async def has_live_leases(self) -> bool:
        """See Store."""
        return bool(self._leases(lambda _: True))

    async def fail_abandoned_uploads(
        self, before: datetime, now: datetime, limit: int
    ) -> Sequence[CommandRecord]:
        """See Store."""
        abandoned = self._live(
            lambda command: command.state is State.PENDING_UPLOAD and command.created_at < before
        )
        abandoned.sort(key=lambda stored: (stored.command.created_at, stored.seq))
        return [self._end(stored, State.FAILED, ABANDONED, now) for stored in abandoned[:limit]]

    async def left_uploads(self, limit: int) -> Sequence[str]:
        """See Store."""
        self._check_open()
        left = [
            stored.command.command_id
            for stored in sorted(self._commands.values(), key=lambda stored: stored.seq)
            if stored.arrived
            and isinstance(stored.params, AwaitedBlob)
            and stored.command.state in lifecycle.TERMINAL
        ]
        return left[:limit]

    async def forget_uploads(self, command_ids: Sequence[str]) -> None:
        """See Store."""
        for command_id in command_ids:
            if command_id in self._commands:
                self._commands[command_id].arrived = 0

    async def purge_commands(
        self, state: State, ended_before: datetime, keys_before: datetime, limit: int
    ) -> Purged:
        """See Store."""
        ended = self._ended(state, (0, 0), ended_before)[:limit]
        for stored in ended:
            del self._commands[stored.command.command_id]
            for keys in self._keys.values():
                keys[:] = [
                    key
                    for key in keys
                    if key.command_id != stored.command.command_id or key.created_at >= keys_before
                ]
        purged = [stored.command.command_id for stored in ended]
        return Purged(command_ids=purged, is_done=len(ended) < limit)

    def _ended(self, state: State, since: StripMark, before: datetime) -> list[StoredCommand]:
        self._check_open()
        ended = [
            stored
            for stored in self._commands.values()
            if stored.command.state is state
            and stored.command.completed_at is not None
            and stored.command.completed_at < before
            and mark_of(stored) > since
        ]
        return sorted(ended, key=mark_of)

    async def strip_bodies(
        self, state: State, since: StripMark, ended_before: datetime, limit: int
    ) -> Stripped:
        """See Store."""
        ended = self._ended(state, since, ended_before)[:limit]
        paths: list[str] = []
        for stored in ended:
            response = stored.response
            body = response.body if isinstance(response, StoredSuccess) else None
            for each in (stored.params, body):
                if isinstance(each, StoredBlob | AwaitedBlob):
                    paths.append(each.path)
            if not isinstance(stored.params, AwaitedBlob):
                stored.params, stored.signature = GONE, None
            if body is not None:
                stored.response = GONE
        mark = mark_of(ended[-1]) if ended else since
        return Stripped(paths=paths, mark=mark, is_done=len(ended) < limit)

    async def strip_events(
        self, state: State, since: StripMark, ended_before: datetime, limit: int
    ) -> Stripped:
        """See Store."""
        ended = self._ended(state, since, ended_before)[:limit]
        for stored in ended:
            stored.said = Said()
        mark = mark_of(ended[-1]) if ended else since
        return Stripped(mark=mark, is_done=len(ended) < limit)

    async def purge_agents(self, before: datetime, limit: int) -> int:
        """See Store."""
        self._check_open()
        unseen = [holder for holder, agent in self._agents.items() if agent.last_seen_at < before]
        for holder in unseen[:limit]:
            del self._agents[holder]
        return len(unseen[:limit])
