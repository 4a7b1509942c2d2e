"""Retention removes what has been kept for long enough, and blobs that no command names.

It goes on in the background as long as the server runs, in small batches with pauses between them:
a request waits for one batch at most. A blob goes after its command: dying in between leaves an
orphan, which the collection finds. After the wall clock was set ahead it removes nothing for a day:
a clock that is wrong for an hour must not make results old.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec
import structlog

from arc_protocol.errors import ArcError, Unavailable
from arc_protocol.messages.base import State
from arc_server.ports.blobs import BlobStore
from arc_server.ports.clock import Clock
from arc_server.ports.meter import NO_METER, ServerMeter
from arc_server.ports.records import CommandRecord, Removed, StripMark, Stripped
from arc_server.ports.retention import RetentionStore
from arc_server.service.announcements import Announcements
from arc_server.service.blob_paths import command_directory
from arc_server.service.uploads import Uploads

log = structlog.get_logger(__name__)

_BEGINNING: Final[StripMark] = (0, 0)
_DAY_SECONDS: Final = 86_400.0
JUMP_SECONDS: Final = 3600.0
"""A wall clock that was set ahead by more than this may be wrong."""
HOLD_SECONDS: Final = _DAY_SECONDS
"""The time in which an operator may notice."""


class RetentionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Ages at which retention removes what has ended, filled from the configuration."""

    succeeded_seconds: float = 30 * _DAY_SECONDS
    failed_seconds: float = 90 * _DAY_SECONDS
    expired_seconds: float = 90 * _DAY_SECONDS
    bodies_seconds: float = 30 * _DAY_SECONDS
    events_seconds: float = 14 * _DAY_SECONDS
    upload_seconds: float = _DAY_SECONDS
    agents_seconds: float = 30 * _DAY_SECONDS
    tokens_seconds: float = 90 * _DAY_SECONDS
    orphan_seconds: float = _DAY_SECONDS
    """The age from which on a blob is collected that no command names."""
    idempotency_key_seconds: float = _DAY_SECONDS
    interval_seconds: float = 60
    collection_seconds: float = 3600
    """The interval at which blobs, agents and tokens are looked through."""
    batch: int = 200
    pause_seconds: float = 0.008
    """Between two batches: most of the writer's time is for others."""


class Retention:
    """Retention fulfils ports.keeping.Keeping, for its own loop and for operators."""

    def __init__(
        self,
        *,
        store: RetentionStore,
        blobs: BlobStore,
        uploads: Uploads,
        announcements: Announcements,
        clock: Clock,
        limits: RetentionLimits,
        is_tight: Callable[[], bool] = lambda: False,
        meter: ServerMeter = NO_METER,
    ) -> None:
        """Collect blobs in every pass, not now and then, while `is_tight` says that room is."""
        self._store = store
        self._blobs = blobs
        self._uploads = uploads
        self._announcements = announcements
        self._clock = clock
        self._limits = limits
        self._is_tight = is_tight
        self._meter = meter
        self._turn = asyncio.Lock()
        self._marks: dict[tuple[str, State], StripMark] = {}
        self._last_collection = float("-inf")
        self._held_until = float("-inf")
        self._offset = self._wall_offset()
        self._is_failing = False

    async def run(self) -> None:
        """Make pass after pass until cancelled. A failure is logged once, and tried again."""
        while True:
            try:
                removed = await self.sweep()
            except Exception as error:
                if not self._is_failing:
                    reason = error.message if isinstance(error, ArcError) else repr(error)
                    is_expected = isinstance(error, Unavailable)
                    log.error("retention.failing", reason=reason, exc_info=not is_expected)
                self._is_failing = True
            else:
                if self._is_failing:
                    log.info("retention.recovered")
                self._is_failing = False
                if removed != Removed():
                    log.info("retention.removed", **msgspec.structs.asdict(removed))
            await self._clock.sleep(self._limits.interval_seconds)

    async def sweep(self) -> Removed:
        """Make one pass unless the clock may be wrong.

        Raises Unavailable; earlier batches stand.
        """
        now = self._clock.monotonic()
        if self._is_held(now):
            return Removed()
        is_due = now - self._last_collection >= self._limits.collection_seconds
        removed = await self._pass(None, collects=is_due or self._is_tight())
        if is_due:
            self._last_collection = now
        return removed

    async def purge(self, older_than_seconds: float | None) -> Removed:
        """Make one pass now, with the collection of blobs.

        Commands go that ended longer ago than `older_than_seconds`; None: as configured.
        """
        return await self._pass(older_than_seconds, collects=True)

    async def delete_command(self, command_id: str) -> bool:
        """Delete an ended command with its bodies. Return False if there is none.

        Raises Conflict for a live one.
        """
        if not await self._store.delete_command(command_id):
            return False
        await self._delete([command_directory(command_id)])
        return True

    def _is_held(self, monotonic: float) -> bool:
        """Return True if the wall clock was set ahead not long ago."""
        ahead = self._wall_offset() - self._offset
        self._offset += ahead
        if ahead > JUMP_SECONDS:
            self._held_until = monotonic + HOLD_SECONDS
            log.warning("retention.held", clock_ahead_seconds=round(ahead), seconds=HOLD_SECONDS)
        return monotonic < self._held_until

    def _wall_offset(self) -> float:
        """Return by how much the wall clock is ahead of the monotonic one."""
        return self._clock.now().timestamp() - self._clock.monotonic()

    async def _pass(self, older_than: float | None, *, collects: bool) -> Removed:
        async with self._turn:
            limits, now = self._limits, self._clock.now()
            uploads = await self._fail_uploads(now)
            await self._remove_left_uploads()
            commands = bodies = 0
            for state, kept_seconds in (
                (State.SUCCEEDED, limits.succeeded_seconds),
                (State.FAILED, limits.failed_seconds),
                (State.EXPIRED, limits.expired_seconds),
            ):
                age = kept_seconds if older_than is None else min(kept_seconds, older_than)
                commands += await self._purge_commands(state, _ago(now, age), now)
                bodies += await self._strip_bodies(state, _ago(now, limits.bodies_seconds))
                await self._walk("events", state, self._events_of(state, now))
            removed = Removed(commands=commands, bodies=bodies, uploads=uploads)
            if not collects:
                return removed
            agents_before = _ago(now, limits.agents_seconds)
            agents = await self._counted(
                "agents", lambda: self._store.purge_agents(agents_before, limits.batch)
            )
            tokens_before = _ago(now, limits.tokens_seconds)
            tokens = await self._counted(
                "tokens", lambda: self._store.purge_tokens(tokens_before, limits.batch)
            )
            found = await self._blobs.collect(self._uploads.is_wanted, limits.orphan_seconds)
            self._meter.removed("blobs", found.files)
            self._meter.removed("blob_bytes", found.bytes)
            return msgspec.structs.replace(
                removed,
                agents=agents,
                tokens=tokens,
                blobs=found.files,
                blob_bytes=found.bytes,
                is_held=found.is_held,
            )

    async def _fail_uploads(self, now: datetime) -> int:
        before = _ago(now, self._limits.upload_seconds)
        count = 0
        while True:
            ended: Sequence[CommandRecord] = await self._store.fail_abandoned_uploads(
                before, now, self._limits.batch
            )
            self._announcements.announce_swept(ended)
            await self._delete([command_directory(command.command_id) for command in ended])
            self._meter.removed("uploads", len(ended))
            count += len(ended)
            if len(ended) < self._limits.batch:
                return count
            await self._pause()

    async def _remove_left_uploads(self) -> None:
        """Remove what was uploaded for commands that ended before they got it."""
        while left := await self._store.left_uploads(self._limits.batch):
            if not await self._delete([command_directory(command_id) for command_id in left]):
                return
            await self._store.forget_uploads(left)
            await self._pause()

    async def _purge_commands(self, state: State, before: datetime, now: datetime) -> int:
        keys_before = _ago(now, self._limits.idempotency_key_seconds)
        count = 0
        while True:
            purged = await self._store.purge_commands(
                state, before, keys_before, self._limits.batch
            )
            self._meter.removed("commands", len(purged.command_ids))
            await self._delete([command_directory(each) for each in purged.command_ids])
            count += len(purged.command_ids)
            if purged.is_done:
                return count
            await self._pause()

    async def _strip_bodies(self, state: State, before: datetime) -> int:
        def batch(mark: StripMark) -> Awaitable[Stripped]:
            return self._store.strip_bodies(state, mark, before, self._limits.batch)

        return await self._walk("bodies", state, batch)

    def _events_of(self, state: State, now: datetime) -> Callable[[StripMark], Awaitable[Stripped]]:
        before = _ago(now, self._limits.events_seconds)
        return lambda mark: self._store.strip_events(state, mark, before, self._limits.batch)

    async def _walk(
        self, what: str, state: State, batch: Callable[[StripMark], Awaitable[Stripped]]
    ) -> int:
        """Walk on over ended commands from where the last pass came to; return how many blobs."""
        count = 0
        while True:
            stripped = await batch(self._marks.get((what, state), _BEGINNING))
            if stripped.paths:
                self._meter.removed(what, len(stripped.paths))
            await self._delete(stripped.paths)
            self._marks[what, state] = stripped.mark
            count += len(stripped.paths)
            if stripped.is_done:
                return count
            await self._pause()

    async def _counted(self, what: str, purge: Callable[[], Awaitable[int]]) -> int:
        count = 0
        while gone := await purge():
            self._meter.removed(what, gone)
            count += gone
            await self._pause()
        return count

    async def _delete(self, paths: Sequence[str]) -> bool:
        """Delete blobs; those that cannot be deleted now are orphans, left to the collection.

        Return True if all of them are gone.
        """
        if not paths:
            return True
        try:
            return await self._blobs.delete_all(paths)
        except ArcError as error:
            log.warning("retention.blobs_left", blobs=len(paths), reason=error.message)
            return False

    async def _pause(self) -> None:
        await asyncio.sleep(self._limits.pause_seconds)


def _ago(now: datetime, seconds: float) -> datetime:
    return now - timedelta(seconds=seconds)
