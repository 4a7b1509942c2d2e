"""The real clock, made steady: the wall clock may be set, and no lease ends by that."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta


class SystemClock:
    """Wall time of the host as it was at the start, carried on by its monotonic clock."""

    def __init__(self) -> None:
        self._origin = datetime.now(UTC)
        self._origin_monotonic = self.monotonic()

    def now(self) -> datetime:
        """UTC, going on evenly until `adjust`."""
        return self._origin + timedelta(seconds=self.monotonic() - self._origin_monotonic)

    def drift(self) -> float:
        """Seconds by which the wall clock is ahead of `now`; negative when it is behind."""
        return (datetime.now(UTC) - self.now()).total_seconds()

    def adjust(self, seconds: float) -> None:
        """Move `now` by that much."""
        self._origin += timedelta(seconds=seconds)

    def monotonic(self) -> float:
        """Seconds that only go forward, also while the process is stopped or the machine sleeps:
        that is an outage to the agents, and no setting of the wall clock."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        """Let that much time pass."""
        await asyncio.sleep(seconds)
