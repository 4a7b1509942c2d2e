"""The port for time."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """The only source of time: `now` for stored instants, `monotonic` for durations here."""

    def now(self) -> datetime:
        """Return the time in UTC.

        It runs on evenly when the host's wall clock is set, and jumps by `adjust` only.
        """
        ...

    def drift(self) -> float:
        """Return the seconds by which the wall clock is ahead of `now`; negative when behind."""
        ...

    def adjust(self, seconds: float) -> None:
        """Move `now`. The caller moves stored instants with it, or leases granted between a jump of
        the wall clock and its discovery would end early or late."""
        ...

    def monotonic(self) -> float:
        """Return seconds that only go forward."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for that long."""
        ...
