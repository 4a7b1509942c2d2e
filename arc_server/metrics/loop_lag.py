"""The probe of the event loop: how late its timers come, at worst between two scrapes.

The worst counts, not the mean: a loop that stands still for a second answers no request meanwhile,
and a mean hides that.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

INTERVAL_SECONDS: Final = 0.1


class LoopLag:
    """The probe of the running event loop. For that loop only."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._longest = 0.0
        self._begin()

    def take(self) -> float:
        """Return the longest lag since the last call, in seconds."""
        longest = max(self._longest, time.monotonic() - self._due)
        self._longest = 0.0
        return max(0.0, longest)

    def close(self) -> None:
        """End the probe."""
        self._timer.cancel()

    def _begin(self) -> None:
        self._due = time.monotonic() + INTERVAL_SECONDS
        self._timer = self._loop.call_later(INTERVAL_SECONDS, self._come)

    def _come(self) -> None:
        self._longest = max(self._longest, time.monotonic() - self._due)
        self._begin()
