"""Makes time pass with nobody asking: deadlines, lapsed leases, idempotency keys, presence.

Works in bounded batches, and is safe to run in every replica: all it does is guarded by state and
lease. Also watches for time that did not pass as it should: an outage of this server (a restart, a
SIGSTOP, a database that was gone) is no failure of the agents, and a wall clock that jumps ends no
lease. Source: design.md, "Rules of the lifecycle".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
import structlog

from arc_protocol.errors import Unavailable
from arc_server.ports.clock import Clock
from arc_server.ports.records import Command
from arc_server.ports.sweeps import SweepStore
from arc_server.service.agents import AgentService
from arc_server.service.announcements import Announcements

log = structlog.get_logger(__name__)

CLOCK_JUMP_SECONDS: Final = 1.0
"""Wall and monotonic time that part by more than this in one tick: the wall clock was set."""
_BEFORE_ALL: Final = datetime.min.replace(tzinfo=UTC)


class SweepLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How often, how much at once, how lenient. Config section `sweeper`."""

    interval_seconds: float = 0.5
    batch: int = 500
    outage_seconds: float = 5
    """A silence longer than this was an outage."""
    outage_grace_seconds: float = 35
    """For how long after an outage no lease that was live at its beginning lapses: agents have to
    find out that the server is back."""
    sign_of_life_seconds: float = 2
    presence_seconds: float = 5
    """How often the agents' presence is stored."""
    idempotency_key_seconds: float = 86_400
    """The least that an idempotency key lives."""
    idempotency_sweep_seconds: float = 60


class Sweeper:
    """One tick after another, for as long as the server runs."""

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
        """How many batches and ticks it has done: while this grows, the database takes writes."""

    async def begin(self) -> None:
        """Judge the time since the last run; to be awaited before anything is leased.

        A lease granted before that would be taken for one of the last run, and moved with those
        when the wall clock has been set back since. A store that is away is left to `run`.
        """
        try:
            await self._after_restart(self._clock.now())
        except Unavailable as error:
            log.error("sweep.failing", reason=error.message)
            self._is_failing = True
        else:
            self._last_sweep = self._clock.monotonic()

    async def run(self) -> None:
        """Tick until cancelled. A store that is away is waited for, with one line in the log."""
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
        """One sweep of everything. Raises StoreUnavailable; what was done until then stands."""
        await self._follow_the_wall_clock()
        now = self._clock.now()
        monotonic = self._clock.monotonic()
        await self._mind_the_gap(now, monotonic)
        await self._in_batches(lambda: self._store.expire_due(now, self._limits.batch))
        await self._in_batches(lambda: self._store.requeue_lapsed(now, self._limits.batch))
        self._last_sweep = monotonic
        await self._leave_sign(now, monotonic)
        if monotonic - self._last_presence >= self._limits.presence_seconds:
            await self._agents.flush()
            self._last_presence = monotonic
        if monotonic - self._last_key_sweep >= self._limits.idempotency_sweep_seconds:
            await self._sweep_keys(now)
            self._last_key_sweep = monotonic

    async def _in_batches(self, sweep: Callable[[], Awaitable[Sequence[Command]]]) -> None:
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
        """Note in the database that the server is up, while there is a lease that could lapse."""
        if monotonic - self._last_sign < self._limits.sign_of_life_seconds:
            return
        if await self._store.has_live_leases():
            await self._store.sign_of_life(now)
        self._last_sign = monotonic

    async def _follow_the_wall_clock(self) -> None:
        """Take the wall clock's time over; when it was set, all that is stored moves with it.

        The clock moves first: what is granted from now on comes after the move of what was granted
        before, in the time that it was granted in.
        """
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
        """See whether time has passed in which nobody could renew a lease."""
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
