"""The real clock, made steady: setting the wall clock ends no lease."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta


class SystemClock:
    """The system clock takes the wall time once and carries it on by the monotonic clock."""

    def __init__(self) -> None:
        self._origin = datetime.now(UTC)
        self._origin_monotonic = self.monotonic()

    def now(self) -> datetime:
        """Return the time in UTC; it runs evenly until `adjust`."""
        return self._origin + timedelta(seconds=self.monotonic() - self._origin_monotonic)

    def drift(self) -> float:
        """Return the seconds by which the wall clock is ahead of `now`; negative when behind."""
        return (datetime.now(UTC) - self.now()).total_seconds()

    def adjust(self, seconds: float) -> None:
        """Move `now`."""
        self._origin += timedelta(seconds=seconds)

    def monotonic(self) -> float:
        """Return seconds that only go forward."""
        # They go on while the machine sleeps: to the agents that is an outage like any other.
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        """Wait for that long."""
        await asyncio.sleep(seconds)
