"""A monotonic clock that the test moves, for the parts of an agent."""

from __future__ import annotations


class MovedClock:
    """The agent's clock: seconds that only the test moves."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
