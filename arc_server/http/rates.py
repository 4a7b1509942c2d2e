"""Rates: how many requests a second one caller may make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from arc_protocol.errors import RateLimited

BURST_SECONDS: Final = 2.0
"""A burst may use up the allowance of this many seconds."""
MAX_KEYS: Final = 10_000
"""Callers that are told apart; past it, those that were silent longest are forgotten."""


class Rate:
    """A limit on requests a second, on average, with short bursts."""

    def __init__(self, per_second: float, monotonic: Callable[[], float]) -> None:
        self._per_second = per_second
        self._monotonic = monotonic
        self._most = max(1.0, per_second * BURST_SECONDS)
        self._left = self._most
        self._at: float | None = None

    def take(self) -> None:
        """Count one request. Raises RateLimited past the limit."""
        now = self._monotonic()
        passed = 0.0 if self._at is None else max(0.0, now - self._at)
        self._at = now
        self._left = min(self._most, self._left + passed * self._per_second)
        if self._left < 1:
            raise RateLimited("too many enrolments and access tokens at a time; try again")
        self._left -= 1


class RateByKey:
    """A rate for each caller, by a key such as its address."""

    def __init__(self, per_second: float, monotonic: Callable[[], float]) -> None:
        self._per_second = per_second
        self._monotonic = monotonic
        self._rates: dict[str, Rate] = {}

    def take(self, key: str) -> None:
        """Count one request of a caller. Raises RateLimited past the limit."""
        rate = self._rates.pop(key, None) or Rate(self._per_second, self._monotonic)
        self._rates[key] = rate  # the dict stays in the order of the last requests
        if len(self._rates) > MAX_KEYS:
            del self._rates[next(iter(self._rates))]
        rate.take()
