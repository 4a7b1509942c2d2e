"""The sweeper lets time take effect: deadlines, lapsed leases, delays, keys, presence.

It works in bounded batches, and each of its writes is guarded by state and lease. It also watches
for time that did not pass evenly: an outage of the server (a restart, a SIGSTOP, a database that
was away) is no failure of the agents, and a wall clock that jumps ends no lease
(docs/protocol.md, Lifecycle).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
import structlog

from arc_protocol.errors import Unavailable
from arc_server.ports.clock import Clock
from arc_server.ports.records import CommandRecord
from arc_server.ports.sweeps import SweepStore
from arc_server.service.agents import AgentService
from arc_server.service.announcements import Announcements

log = structlog.get_logger(__name__)

CLOCK_JUMP_SECONDS: Final = 1.0
"""The wall clock was set if it parts from the monotonic clock by more than this in one tick."""
_BEFORE_ALL: Final = datetime.min.replace(tzinfo=UTC)


class SweepLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the sweeper, filled from the configuration."""

    interval_seconds: float = 0.5
    batch: int = 500
    outage_seconds: float = 5
    """A gap between two sweeps longer than this was an outage."""
    outage_grace_seconds: float = 35
    """The time after an outage in which no lease lapses that was live when it began: agents first
    have to find that the server is back."""
    sign_of_life_seconds: float = 2
    presence_seconds: float = 5
    """The interval at which the presence of agents is stored."""
    idempotency_key_seconds: float = 86_400
    """The shortest life of an idempotency key."""
    idempotency_sweep_seconds: float = 60


class Sweeper:
    """The loop of ticks that runs as long as the server."""

    def __init__(
        self,
        *,
        store: SweepStore,
        announcements: Announcements,
        agents: AgentService,
        clock: Clock,
        limits: SweepLimits,
    ) -> None:
        self._store = store
        self._announcements = announcements
        self._agents = agents
        self._clock = clock
        self._limits = limits
        self._last_sweep: float | None = None
        self._last_sign = float("-inf")
        self._last_presence = clock.monotonic()
        self._last_key_sweep = float("-inf")
        self._is_failing = False
        self.steps = 0
        """The number of batches and ticks done. While it grows, the database takes writes."""

    async def begin(self) -> None:
        """Judge the time since the last run of the server. Await it before anything is leased.

        A lease granted earlier would count as one of the last run, and would move with its leases
        if the wall clock was set back since. A store that is away is left to `run`.
        """
        try:
            await self._after_restart(self._clock.now())
        except Unavailable as error:
            log.error("sweep.failing", reason=error.message)
            self._is_failing = True
        else:
            self._last_sweep = self._clock.monotonic()

    async def run(self) -> None:
        """Tick until cancelled. Wait for a store that is away, with one line in the log."""
        while True:
            try:
                await self.tick()
            except Unavailable as error:
                if not self._is_failing:
                    log.error("sweep.failing", reason=error.message)
                self._is_failing = True
            except Exception:
                if not self._is_failing:
                    log.exception("sweep.failing")
                self._is_failing = True
            else:
                if self._is_failing:
                    log.info("sweep.recovered")
                self._is_failing = False
            self.steps += 1
            await self._clock.sleep(self._limits.interval_seconds)

    async def tick(self) -> None:
        """Sweep everything once. Raises StoreUnavailable; earlier batches stand."""
        await self._follow_the_wall_clock()
        now = self._clock.now()
        monotonic = self._clock.monotonic()
        await self._mind_the_gap(now, monotonic)
        await self._in_batches(lambda: self._store.expire_due(now, self._limits.batch))
        await self._in_batches(lambda: self._store.requeue_lapsed(now, self._limits.batch))
        await self._in_batches(lambda: self._store.release_delayed(now, self._limits.batch))
        self._last_sweep = monotonic
        await self._leave_sign(now, monotonic)
        if monotonic - self._last_presence >= self._limits.presence_seconds:
            await self._agents.flush()
            self._last_presence = monotonic
        if monotonic - self._last_key_sweep >= self._limits.idempotency_sweep_seconds:
            await self._sweep_keys(now)
            self._last_key_sweep = monotonic

    async def _in_batches(self, sweep: Callable[[], Awaitable[Sequence[CommandRecord]]]) -> None:
        while True:
            changed = await sweep()
            self.steps += 1
            self._announcements.announce_swept(changed)
            if len(changed) < self._limits.batch:
                return

    async def _sweep_keys(self, now: datetime) -> None:
        before = now - timedelta(seconds=self._limits.idempotency_key_seconds)
        while await self._store.forget_idempotency_keys(before, self._limits.batch) >= (
            self._limits.batch
        ):
            pass

    async def _leave_sign(self, now: datetime, monotonic: float) -> None:
        """Store that the server is up, while there is a lease that could lapse."""
        if monotonic - self._last_sign < self._limits.sign_of_life_seconds:
            return
        if await self._store.has_live_leases():
            await self._store.sign_of_life(now)
        self._last_sign = monotonic

    async def _follow_the_wall_clock(self) -> None:
        """Adopt the time of the wall clock, and move the stored leases along if it was set."""
        # The clock moves first, so that leases granted during the move are in the new time.
        drift = self._clock.drift()
        self._clock.adjust(drift)
        if abs(drift) <= CLOCK_JUMP_SECONDS:
            return
        try:
            moved = await self._store.shift_leases(drift)
        except BaseException:
            self._clock.adjust(-drift)
            raise
        log.warning("clock.jumped", seconds=round(drift, 3), leases=moved)

    async def _mind_the_gap(self, now: datetime, monotonic: float) -> None:
        """Grant grace for time in which no agent could renew a lease."""
        if self._last_sweep is None:
            await self._after_restart(now)
            return
        passed = monotonic - self._last_sweep
        if passed > self._limits.outage_seconds:
            await self._grant_grace(now - timedelta(seconds=passed), now)
            self._last_sweep = monotonic

    async def _after_restart(self, now: datetime) -> None:
        last = await self._store.last_sign_of_life()
        if last is not None and last > now:
            jump = (now - last).total_seconds()
            moved = await self._store.shift_leases(jump)
            log.warning("clock.behind_last_run", seconds=round(jump, 3), leases=moved)
            return
        if last is None or (now - last).total_seconds() > self._limits.outage_seconds:
            await self._grant_grace(last or _BEFORE_ALL, now)

    async def _grant_grace(self, since: datetime, now: datetime) -> None:
        until = now + timedelta(seconds=self._limits.outage_grace_seconds)
        kept = await self._store.grant_grace(since, until, until)
        if since is not _BEFORE_ALL:
            seconds = round((now - since).total_seconds(), 3)
            log.warning("outage.ended", seconds=seconds, leases_kept=kept)
