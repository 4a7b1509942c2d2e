"""How long the server may hold a poll, when something between here and there cuts it off sooner.

Proxies and balancers end connections on which nothing moves, at 30, 60 or 120 s mostly; some say
so (502, 504), some hang up, some just forget. What was cut is asked for with a shorter wait.
"""

from __future__ import annotations

from typing import Final

import structlog

from arc_agent.host.clock import Clock

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_HELD_SECONDS: Final = 3.0
"""A request that broke off after this had been taken by the server: no sign that it is down."""
_SHORTEST_SECONDS: Final = 2.0
_MARGIN: Final = 0.8
_GROWTH: Final = 1.1
_PATIENCE: Final = 20
"""How many waits in a row must pass whole before a longer one is tried."""
_FORGET_SECONDS: Final = 3600.0
"""What was seen to be cut an hour ago is tried again: networks change."""
_NEARLY: Final = 0.9
_BELIEVED: Final = 2
"""How many polls in a row may break off before it is the server that is not there."""
_GATEWAY: Final = (408, 502, 503, 504)


class PollWait:
    """The wait that is asked for. Lives in the main loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._limit: float | None = None
        """What is asked for instead of the configured wait."""
        self._ceiling = 0.0
        """The shortest time after which a poll was cut."""
        self._cut_at = 0.0
        self._suspect: float | None = None
        """After how long the last poll broke off, until one is seen to go on longer."""
        self._in_a_row = 0
        self._whole = 0

    def seconds(self, configured: float) -> float:
        """The wait for the next poll."""
        return configured if self._limit is None else min(configured, self._limit)

    def broke_off(self, asked: float, took: float, *, status: int | None, was_cut: bool) -> bool:
        """A poll ended without an answer of the server's. Whether that says nothing about it.

        The first may be a server that was stopped, which the next try tells better; the second in a
        row after a while is something that cuts. What could not be sent at all is neither.
        """
        if asked <= 0 or not (was_cut or status in _GATEWAY):
            self._suspect = None
            self._in_a_row = _BELIEVED
            return False
        self._in_a_row += 1
        if took < _HELD_SECONDS:
            return was_cut and self._in_a_row == 1
        is_too_long = self._limit is not None and took >= _NEARLY * asked
        if self._suspect is not None or is_too_long:
            self._shorten(min(took, self._suspect or took))
        self._suspect = took
        return self._in_a_row <= _BELIEVED

    def was_lost(self, asked: float) -> None:
        """A poll was never answered at all: nobody tells when it was cut."""
        if asked > _SHORTEST_SECONDS:
            self._shorten(asked / 2 / _MARGIN)

    def ended(self, asked: float, took: float) -> None:
        """A poll was answered by the server."""
        self._in_a_row = 0
        if self._suspect is not None and took >= self._suspect:
            self._suspect = None
        if self._limit is None or took < asked:
            return
        self._whole += 1
        if self._clock() - self._cut_at >= _FORGET_SECONDS:
            self._ceiling = float("inf")
        if self._whole < _PATIENCE:
            return
        self._whole = 0
        self._limit = min(self._limit * _GROWTH, self._ceiling * (1 + _MARGIN) / 2)

    def _shorten(self, cut_seconds: float) -> None:
        """Ask for less than what was cut."""
        seconds = max(_SHORTEST_SECONDS, cut_seconds * _MARGIN)
        self._whole = 0
        self._ceiling, self._cut_at = cut_seconds, self._clock()
        if self._limit is None:
            log.info(
                "poll.shortened",
                wait_seconds=round(seconds, 1),
                cut_after_seconds=round(cut_seconds, 1),
            )
        if self._limit is None or seconds < self._limit:
            self._limit = seconds
