"""Rates: how many requests a second one caller may make, by its token or its address."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from arc_protocol.errors import RateLimited

BURST_SECONDS: Final = 2.0
"""A burst may use up the allowance of this many seconds."""
MAX_WAIT_SECONDS: Final = 30.0
"""The longest that a request waits for its turn: as long as a poll."""
MAX_KEYS: Final = 10_000
"""Callers that are told apart; past it, the one that has been quiet longest is forgotten."""


class Rate:
    """A rate is a bucket that fills by the second and is emptied by requests.

    It may be overdrawn: a request that waits for its turn takes it at once, and waits until the
    bucket would have held it.
    """

    __slots__ = ("_at", "_left", "_most", "per_second")

    def __init__(self, per_second: float, now: float) -> None:
        self.per_second = per_second
        self._most = max(1.0, per_second * BURST_SECONDS)
        self._left = self._most
        self._at = now

    def wait_seconds(self, now: float, cost: float = 1) -> float:
        """Return how long the next request has to wait; 0 if it need not."""
        passed = max(0.0, now - self._at)
        self._at = now
        self._left = min(self._most, self._left + passed * self.per_second)
        return max(0.0, (min(cost, self._most) - self._left) / self.per_second)

    def take(self, cost: float = 1) -> None:
        """Count one request."""
        self._left -= cost


class Rates:
    """A rate for each caller. The memory that they take is bounded, however many callers come."""

    def __init__(
        self,
        per_second: float,
        monotonic: Callable[[], float],
        *,
        of: str,
        unit: str = "requests",
    ) -> None:
        """Limit each caller; `of` says of which kind they are, for example `token`."""
        self._per_second = per_second
        self._monotonic = monotonic
        self._of = of
        self._unit = unit
        self._rates: dict[str, Rate] = {}

    def take(self, key: str = "", *, cost: float = 1, may_wait: bool = False) -> float:
        """Count one request of a caller. Return how long it has to wait first, in seconds.

        Raises RateLimited past the limit, and counts nothing, unless the request may wait.
        """
        now = self._monotonic()
        rate = self._rates.pop(key, None) or Rate(self._per_second, now)
        self._rates[key] = rate  # the dict stays in the order of the last requests
        if len(self._rates) > MAX_KEYS:
            del self._rates[next(iter(self._rates))]
        wait = rate.wait_seconds(now, cost)
        if wait and not may_wait:
            raise RateLimited(
                f"too many {self._unit} of this {self._of}: at most {self._per_second:g} a second",
                retry_after_seconds=math.ceil(wait),
                limit_of=self._of,
                per_second=self._per_second,
            )
        if wait < MAX_WAIT_SECONDS:  # or clients that hang up could let all others wait for ever
            rate.take(cost)
        return min(wait, MAX_WAIT_SECONDS)
