"""The real clock: it starts from the wall clock and goes on evenly when the wall clock is set."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime


class SystemClock:
    """The system clock takes the wall time once and carries it on by the monotonic clock."""

    def __init__(self) -> None:
        self._ahead = time.time() - self.monotonic()
        """Seconds from the monotonic clock's zero back to the epoch."""

    def now(self) -> datetime:
        """Return the time in UTC, which goes on evenly until `adjust`."""
        return datetime.fromtimestamp(self.monotonic() + self._ahead, UTC)

    def drift(self) -> float:
        """Return the seconds by which the wall clock is ahead of `now`; negative when behind."""
        return time.time() - self.now().timestamp()

    def adjust(self, seconds: float) -> None:
        """Move `now` by that much."""
        self._ahead += seconds

    def monotonic(self) -> float:
        """Return seconds that only go forward, also while the machine sleeps.

        Time in which the process or the machine stood still is an outage to the agents, and no
        setting of the wall clock.
        """
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        """Wait for that long."""
        await asyncio.sleep(seconds)
