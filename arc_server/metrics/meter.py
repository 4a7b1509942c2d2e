"""The meter of a running server: plain numbers, which a scrape reads.

Each number is written by one thread, the event loop's or the database's writing thread, and read by
the thread of a scrape: no locks. Deployments are no label, as there is no end to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from arc_protocol import lifecycle
from arc_protocol.errors import (
    BadRequest,
    Forbidden,
    HeadersTooLarge,
    InsufficientStorage,
    PayloadTooLarge,
    QuotaExceeded,
    RateLimited,
    RequestTimeout,
    Unauthorized,
    Unavailable,
)
from arc_protocol.messages.base import State
from arc_server.metrics.histogram import BATCH_SIZES, WAIT_SECONDS, WORK_SECONDS, Histogram
from arc_server.ports.meter import TOO_MANY_CONNECTIONS, Exchange, Move

OTHER: Final = "(other)"
"""The label of requests that no route takes: their paths and methods are endless."""
REFUSALS: Final = (
    *(
        error.code.lower()
        for error in (
            BadRequest,
            Unauthorized,
            Forbidden,
            RequestTimeout,
            PayloadTooLarge,
            RateLimited,
            QuotaExceeded,
            HeadersTooLarge,
            Unavailable,
            InsufficientStorage,
        )
    ),
    TOO_MANY_CONNECTIONS,
)
PUSHES: Final = ("accepted", "rejected", "failed")
PURGED: Final = ("commands", "bodies", "uploads", "agents", "tokens", "blobs", "blob_bytes")
"""Labels that are there from the first scrape on: a rate needs a figure that was 0."""
MOVES: Final[Sequence[tuple[State | None, State]]] = (
    (None, State.PENDING_UPLOAD),
    (None, State.PENDING),
    *((was, state) for was in State for state in lifecycle.TRANSITIONS[was]),
)
MAX_REMEMBERED_READY: Final = 10_000
"""Commands whose latest readiness is remembered until they are leased, beside the new ones."""


class RouteCounts:
    """The counts of one method of one route."""

    def __init__(self) -> None:
        self.by_class: Counter[int] = Counter({2: 0})
        """Requests by the first digit of their status."""
        self.seconds = Histogram(WORK_SECONDS)
        self.wakeup_seconds: Histogram | None = None
        """None for a route that never waited."""
        self.received_bytes = 0
        self.sent_bytes = 0


class RouteKey(NamedTuple):
    """Template of the path, and method."""

    route: str
    method: str


class CountingMeter:
    """The meter fulfils ports.meter.ServerMeter."""

    is_on = True

    def __init__(self) -> None:
        self.routes: dict[RouteKey, RouteCounts] = {}
        self.refusals = _zeros(REFUSALS)
        self.pushes = _zeros(PUSHES)
        self.purged = _zeros(PURGED)
        self.commit_operations = Histogram(BATCH_SIZES)
        self.commit_seconds = Histogram(WORK_SECONDS)
        self.busy_seconds = 0.0
        """Time that the writing thread was at work."""
        self.live = {state: 0 for state in State if state in lifecycle.LIVE}
        self.moves: Counter[tuple[State | None, State]] = Counter(dict.fromkeys(MOVES, 0))
        self.lease_seconds = Histogram(WAIT_SECONDS)
        self.command_seconds = {
            state: Histogram(WAIT_SECONDS) for state in State if state in lifecycle.TERMINAL
        }
        self._ready: dict[str, datetime] = {}
        """Since when commands are ready that were not at their creation."""

    def expect(self, routes: Iterable[RouteKey]) -> None:
        """Show these routes from the first scrape on."""
        for key in routes:
            self.routes.setdefault(key, RouteCounts())

    # in the event loop

    def answered(self, exchange: Exchange) -> None:
        if exchange.route is None:
            key = RouteKey(OTHER, OTHER)
        else:
            key = RouteKey(exchange.route, exchange.method)
        counts = self.routes.get(key)
        if counts is None:
            counts = self.routes[key] = RouteCounts()
        counts.by_class[exchange.status // 100] += 1
        counts.seconds.observe(exchange.seconds)
        counts.received_bytes += exchange.received_bytes
        counts.sent_bytes += exchange.sent_bytes
        if exchange.wakeup_seconds is not None:
            if counts.wakeup_seconds is None:
                counts.wakeup_seconds = Histogram(WORK_SECONDS)
            counts.wakeup_seconds.observe(exchange.wakeup_seconds)

    def refused(self, reason: str) -> None:
        self.refusals[reason] += 1

    def pushed(self, outcome: str) -> None:
        self.pushes[outcome] += 1

    def removed(self, what: str, count: int) -> None:
        self.purged[what] += count

    # in the writing thread

    def began(self, live: Mapping[State, int]) -> None:
        self.live.update(live)

    def committed(self, operations: int, seconds: float, moves: Sequence[Move]) -> None:
        self.commit_operations.observe(operations)
        self.commit_seconds.observe(seconds)
        for move in moves:
            self._move(move)

    def wrote(self, seconds: float) -> None:
        self.busy_seconds += seconds

    def _move(self, move: Move) -> None:
        command, was, state = move.command, move.was, move.state
        self.moves[was, state] += 1
        if was is not None:
            self.live[was] -= 1
        if state in self.live:
            self.live[state] += 1
        if state is State.DISPATCHED:
            since = self._ready.pop(command.command_id, None)
            if since is None and command.dispatched_at is None and not move.is_uploaded:
                since = command.created_at
            if move.is_lease and since is not None:
                self.lease_seconds.observe((move.at - since).total_seconds())
        elif state is State.PENDING:
            if was is not None:
                self._remember_ready(command.command_id, move.at)
        elif state in self.command_seconds:
            self._ready.pop(command.command_id, None)
            self.command_seconds[state].observe((move.at - command.created_at).total_seconds())

    def _remember_ready(self, command_id: str, at: datetime) -> None:
        if len(self._ready) >= MAX_REMEMBERED_READY:
            del self._ready[next(iter(self._ready))]
        self._ready[command_id] = at


def _zeros(keys: Sequence[str]) -> Counter[str]:
    return Counter(dict.fromkeys(keys, 0))
