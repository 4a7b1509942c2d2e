"""Whether a loop moves: it says by when it will, and is stuck when it has not."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from arc_agent.host.clock import MonotonicClock

LATE_SECONDS: Final = 5.0
"""A loaded machine is late by as much. The unit's WatchdogSec is the real patience: a loop that
moves again before it is over is not killed."""


class Pulse:
    """What one loop says of itself. Its time-outs are all that it may take, and it says which."""

    def __init__(self, clock: MonotonicClock) -> None:
        self._clock = clock
        self._due_at = math.inf
        self._has_ended = False
        self._may_rest: Callable[[], bool] | None = None

    def within(self, seconds: float) -> None:
        """The loop moves again after so many seconds at most; math.inf: when something happens."""
        self._due_at = self._clock() + seconds

    def ends(self) -> None:
        """The loop is told to end: nobody waits for it to move any more."""
        self._has_ended = True

    @contextmanager
    def resting(self, is_right: Callable[[], bool]) -> Generator[None]:
        """The loop waits meanwhile, for as long as `is_right` says that there is reason to."""
        self._may_rest = is_right
        try:
            yield
        finally:
            self._may_rest = None
            self.within(0)

    def is_stuck(self) -> bool:
        """Whether the loop should have moved and has not."""
        if self._may_rest is not None and self._may_rest():
            self.within(0)
        return not self._has_ended and self._clock() > self._due_at + LATE_SECONDS
