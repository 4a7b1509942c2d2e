"""Shares: how many requests one token may have at a time, and how many a second."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from arc_protocol.errors import RateLimited
from arc_server.http.limits import HttpLimits

BURST_SECONDS: Final = 2.0
"""A burst may use up the allowance of this many seconds."""
MAX_WAIT_SECONDS: Final = 30.0
"""The longest that a request waits for its turn: as long as a poll."""
MAX_REMEMBERED: Final = 10_000
"""Tokens whose rates are remembered; the one that has been quiet longest is forgotten first."""


class TokenRate:
    """The rate of one token: a bucket that fills by the second, and is emptied by requests.

    It may be overdrawn: a request that waits for its turn takes it at once, and waits until the
    bucket would have held it.
    """

    __slots__ = ("_at", "_left", "_most", "_per_second")

    def __init__(self, per_second: float, now: float) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second * BURST_SECONDS)
        self._left = self._most
        self._at = now

    def wait_seconds(self, now: float) -> float:
        """Return how long the next request has to wait; 0 if it need not."""
        passed = max(0.0, now - self._at)
        self._at = now
        self._left = min(self._most, self._left + passed * self._per_second)
        return max(0.0, (1 - self._left) / self._per_second)

    def take(self) -> None:
        """Count one request."""
        self._left -= 1


class Shares:
    """The requests of every token, at a time and by the second."""

    def __init__(self, limits: HttpLimits, monotonic: Callable[[], float]) -> None:
        self._limits = limits
        self._monotonic = monotonic
        self._rates: dict[str, TokenRate] = {}
        self._running: dict[str, int] = {}

    def begin(self, token_id: str, *, may_wait: bool) -> float:
        """Count a request until `end`, and return how long it has to wait first, in seconds.

        Raises RateLimited, and counts nothing, if the token has too many requests at a time, or
        sends too many a second and this one may not wait or would wait too long.
        """
        running = self._running.get(token_id, 0)
        if running >= self._limits.max_requests_per_token:
            raise RateLimited(
                f"too many requests of this token at the same time: at most {running}",
                retry_after_seconds=1,
            )
        wait = self._turn(token_id, may_wait=may_wait)
        self._running[token_id] = running + 1
        return wait

    def end(self, token_id: str) -> None:
        """Count a request no longer: it is answered."""
        left = self._running[token_id] - 1
        if left:
            self._running[token_id] = left
        else:
            del self._running[token_id]

    def _turn(self, token_id: str, *, may_wait: bool) -> float:
        now = self._monotonic()
        rate = self._rates.pop(token_id, None) or TokenRate(self._limits.requests_per_second, now)
        self._rates[token_id] = rate  # the last of the dictionary: the most recent
        if len(self._rates) > MAX_REMEMBERED:
            del self._rates[next(iter(self._rates))]
        wait = rate.wait_seconds(now)
        if wait and (not may_wait or wait > MAX_WAIT_SECONDS):
            per_second = self._limits.requests_per_second
            raise RateLimited(
                f"too many requests of this token: at most {per_second:g} a second",
                retry_after_seconds=math.ceil(wait),
                per_second=per_second,
            )
        rate.take()
        return wait
