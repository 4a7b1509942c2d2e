"""The pulse of a loop: the loop sets its next due time, and is stuck when that has passed."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from arc_agent.host.clock import MonotonicClock

LATE_SECONDS: Final = 5.0
"""The delay of a loaded machine. The unit's WatchdogSec is the real limit: a loop that moves again
within it is not killed."""


class Pulse:
    """The due time of one loop."""

    def __init__(self, clock: MonotonicClock) -> None:
        self._clock = clock
        self._due_at = math.inf
        self._has_ended = False
        self._may_rest: Callable[[], bool] | None = None

    def within(self, seconds: float) -> None:
        """Set the due time: the loop moves again within `seconds`; math.inf for no limit."""
        self._due_at = self._clock() + seconds

    def ends(self) -> None:
        """Record that the loop ends: it is never stuck from now on."""
        self._has_ended = True

    @contextmanager
    def resting(self, is_right: Callable[[], bool]) -> Generator[None]:
        """Let the loop rest inside the block for as long as `is_right` returns True."""
        self._may_rest = is_right
        try:
            yield
        finally:
            self._may_rest = None
            self.within(0)

    def is_stuck(self) -> bool:
        """Return True if the due time has passed."""
        if self._may_rest is not None and self._may_rest():
            self.within(0)
        return not self._has_ended and self._clock() > self._due_at + LATE_SECONDS
