"""Shares: how many requests one token may have at a time, and how many a second."""

from __future__ import annotations

from collections.abc import Callable

from arc_protocol.errors import RateLimited
from arc_server.http.limits import HttpLimits
from arc_server.http.rates import Rates


class Shares:
    """The requests of every token, at a time and by the second."""

    def __init__(self, limits: HttpLimits, monotonic: Callable[[], float]) -> None:
        self._most_at_a_time = limits.max_requests_per_token
        self._rates = Rates(limits.requests_per_second, monotonic, of="token")
        self._running: dict[str, int] = {}

    def begin(self, token_id: str, *, may_wait: bool) -> float:
        """Count a request until `end`, and return how long it has to wait first, in seconds.

        One that may wait is never refused: so many at a time as there are connections, it waits for
        its turn. Raises RateLimited, and counts nothing, if any other is one too many, at a time or
        a second.
        """
        running = self._running.get(token_id, 0)
        if running >= self._most_at_a_time and not may_wait:
            raise RateLimited(
                f"too many requests of this token at the same time: at most {running}",
                retry_after_seconds=1,
            )
        wait = self._rates.take(token_id, may_wait=may_wait)
        self._running[token_id] = running + 1
        return wait

    def end(self, token_id: str) -> None:
        """Count a request no longer: it is answered."""
        left = self._running[token_id] - 1
        if left:
            self._running[token_id] = left
        else:
            del self._running[token_id]
