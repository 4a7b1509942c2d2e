"""The two rules of patience of the poller.

PollWait decides how long the server may hold a request. Proxies and balancers close connections on
which nothing moves, mostly after 30, 60 or 120 s: some say so (502, 504), some hang up, some drop
the connection in silence. After a cut the agent asks for a shorter wait.

PollInterval decides how long the poller rests after an answer: not at all when the server holds
requests until work comes, and longer and longer when it does not.
"""

from __future__ import annotations

import random
from typing import Final

import structlog

from arc_agent.config.sections import PollSection
from arc_agent.host.clock import MonotonicClock
from arc_agent.net.lease_calls import LeaseAnswer

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_HELD_SECONDS: Final = 3.0
"""A request that broke off after this had been taken by the server: no sign that it is down."""
_SHORTEST_SECONDS: Final = 2.0
_MARGIN: Final = 0.8
_GROWTH: Final = 1.1
_WHOLE_WAITS: Final = 20
"""The waits in a row that must end by an answer before a longer one is tried."""
_FORGET_SECONDS: Final = 3600.0
"""A cut is forgotten after an hour: networks change."""
_NEARLY: Final = 0.9
_BELIEVED: Final = 2
"""The polls in a row that may break off before the server counts as lost."""
_GATEWAY: Final = (408, 502, 503, 504)
_PAUSE_SECONDS: Final = 1.0
_EARLY_ANSWERS: Final = 3
"""The early answers in a row, each before a pause, that a server with extensions may give."""


class PollWait:
    """The wait that is asked for. Lives in the main loop."""

    def __init__(self, clock: MonotonicClock) -> None:
        self._clock = clock
        self._limit: float | None = None
        """The wait in place of the configured one."""
        self._ceiling = 0.0
        """The shortest time after which a poll was cut."""
        self._cut_at = 0.0
        self._suspect: float | None = None
        """The time after which the last poll broke off, until another one takes longer."""
        self._in_a_row = 0
        self._whole = 0

    def seconds(self, configured: float) -> float:
        """Return the wait for the next poll."""
        return configured if self._limit is None else min(configured, self._limit)

    def broke_off(self, asked: float, took: float, *, status: int | None, was_cut: bool) -> bool:
        """Note a poll without an answer of the server. Return True if that says nothing about it.

        The first may be a server that was stopped: the next try shows that. The second in a row
        after a while is a cut on the way. A request that could not be sent at all is neither.
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
        """Note a poll that was never answered: the moment of the cut is unknown."""
        if asked > _SHORTEST_SECONDS:
            self._shorten(asked / 2 / _MARGIN)

    def ended(self, asked: float, took: float) -> None:
        """Note a poll that the server answered."""
        self._in_a_row = 0
        if self._suspect is not None and took >= self._suspect:
            self._suspect = None
        if self._limit is None or took < asked:
            return
        self._whole += 1
        if self._clock() - self._cut_at >= _FORGET_SECONDS:
            self._ceiling = float("inf")
        if self._whole < _WHOLE_WAITS:
            return
        self._whole = 0
        self._limit = min(self._limit * _GROWTH, self._ceiling * (1 + _MARGIN) / 2)

    def _shorten(self, cut_seconds: float) -> None:
        """Ask for a shorter wait than the one that was cut."""
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


class PollInterval:
    """The rest after an answer. Lives in the main loop.

    A server that answers empty much earlier than asked does not know `waitSeconds`. It is polled as
    public receivers do, every 5 s doubling to 30 s, until it is seen to wait. A server that shows
    extensions may answer early a few times: it restarts, or another agent was quicker.
    """

    def __init__(self, source: random.Random) -> None:
        """Take the jitter from `source`."""
        self._random = source
        self._interval = 0.0
        self._early = 0
        self.is_long_poll = True

    def after(
        self,
        settings: PollSection,
        answer: LeaseAnswer,
        *,
        asked_seconds: float,
        took_seconds: float,
        has_extensions: bool,
    ) -> float:
        """Return the seconds until the next request.

        `has_extensions`: the server has shown one, or it was not asked for any yet.
        """
        if answer.leases or answer.broken or answer.cancelled:
            self._interval = 0.0
            if answer.shows_extensions and not self.is_long_poll:
                self._waits()
            return 0.0
        if asked_seconds > 0 and took_seconds >= asked_seconds / 2:
            self._waits()
            return 0.0
        self._early += 1
        may_be_early = self.is_long_poll and has_extensions and asked_seconds > 0
        if may_be_early and self._early <= _EARLY_ANSWERS:
            return self._random.uniform(0, _PAUSE_SECONDS)
        return self._falls_back(settings)

    def _waits(self) -> None:
        """Note that the server holds a request until work comes."""
        if not self.is_long_poll:
            log.info("poll.waits")
        self.is_long_poll = True
        self._interval, self._early = 0.0, 0

    def _falls_back(self, settings: PollSection) -> float:
        """Return the next interval for a server that holds no request."""
        if self.is_long_poll:
            log.info("poll.in_intervals", seconds=settings.interval_seconds)
        self.is_long_poll = False
        self._interval = min(
            self._interval * 2 or settings.interval_seconds, settings.max_interval_seconds
        )
        return self._interval * self._random.uniform(1 - settings.jitter, 1 + settings.jitter)
