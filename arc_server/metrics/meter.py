"""The meter of a running server: plain numbers, which a scrape reads.

Each number is written by one thread, the event loop's or the database's writing thread, and read by
the thread of a scrape: no locks. Deployments are no label, as there is no end to them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

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
from arc_server.ports.meter import TOO_MANY_CONNECTIONS, Move

OTHER: Final = "(other)"
"""The label of requests that no route takes: their paths and methods are endless."""
_PENDING_UPLOAD, _PENDING, _DISPATCHED = State.PENDING_UPLOAD, State.PENDING, State.DISPATCHED
# Python 3.11 looks each member of an Enum up in a function of Python's own.
_NO_ROUTE: Final = (OTHER, OTHER)
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
        self.by_class = [0] * 6
        """Requests by the first digit of their status."""
        self.seconds = Histogram(WORK_SECONDS)
        self.wakeup_seconds: Histogram | None = None
        """None for a route that never waited."""
        self.received_bytes = 0
        self.sent_bytes = 0


RouteKey = tuple[str, str]
"""Template of the path, and method."""


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
        self.lease_seconds = Histogram(WAIT_SECONDS)
        self._began = {state: 0 for state in State if state in lifecycle.LIVE}
        # By the ids of states, of which there is one each: the hash of an Enum is a function in
        # Python, and takes longer than all else that is done for a move.
        self._moves: defaultdict[tuple[int, int], int] = defaultdict(int)
        self._command_seconds = {
            id(state): Histogram(WAIT_SECONDS) for state in State if state in lifecycle.TERMINAL
        }
        self._ready: dict[str, datetime] = {}
        """Since when commands are ready that were not at their creation."""

    def expect(self, routes: Iterable[RouteKey]) -> None:
        """Show these routes from the first scrape on."""
        for key in routes:
            self.routes.setdefault(key, RouteCounts())

    # in the event loop

    def answered(
        self,
        route: str | None,
        method: str,
        status: int,
        seconds: float,
        wakeup_seconds: float | None,
        received_bytes: int,
        sent_bytes: int,
        /,
    ) -> None:
        key = _NO_ROUTE if route is None else (route, method)
        counts = self.routes.get(key)
        if counts is None:
            counts = self.routes[key] = RouteCounts()
        counts.by_class[status // 100] += 1
        counts.seconds.observe(seconds)
        counts.received_bytes += received_bytes
        counts.sent_bytes += sent_bytes
        if wakeup_seconds is not None:
            if counts.wakeup_seconds is None:
                counts.wakeup_seconds = Histogram(WORK_SECONDS)
            counts.wakeup_seconds.observe(wakeup_seconds)

    def refused(self, reason: str) -> None:
        self.refusals[reason] += 1

    def pushed(self, outcome: str) -> None:
        self.pushes[outcome] += 1

    def removed(self, what: str, count: int) -> None:
        self.purged[what] += count

    # in the writing thread

    def began(self, live: Mapping[State, int]) -> None:
        self._began |= live

    def committed(self, operations: int, seconds: float, moves: Sequence[Move]) -> None:
        self.commit_operations.observe(operations)
        self.commit_seconds.observe(seconds)
        counts, ready = self._moves, self._ready
        for command, was, state, at, is_lease, is_uploaded in moves:
            counts[id(was), id(state)] += 1
            if state is _DISPATCHED:
                since = ready.pop(command.command_id, None) if ready else None
                if since is None and command.dispatched_at is None and not is_uploaded:
                    since = command.created_at
                if is_lease and since is not None:
                    self.lease_seconds.observe(_between(since, at))
            elif state is _PENDING:
                if was is not None:
                    self._remember_ready(command.command_id, at)
            elif state is not _PENDING_UPLOAD:
                if ready:
                    ready.pop(command.command_id, None)
                lived = _between(command.created_at, at)
                self._command_seconds[id(state)].observe(lived)

    def wrote(self, seconds: float) -> None:
        self.busy_seconds += seconds

    # in any thread

    def moves(self) -> Mapping[tuple[State | None, State], int]:
        """Return how many commands went from one state to another, None for new ones."""
        return {(was, state): self._moves.get((id(was), id(state)), 0) for was, state in MOVES}

    def live(self) -> Mapping[State, int]:
        """Return how many commands are in each state that is not the end."""
        moves = self.moves()
        return {
            live: began
            + sum(count for (_, state), count in moves.items() if state is live)
            - sum(count for (was, _), count in moves.items() if was is live)
            for live, began in self._began.items()
        }

    def command_seconds(self) -> Mapping[State, Histogram]:
        """Return the time from creation to end, by the state at the end."""
        return {
            state: self._command_seconds[id(state)]
            for state in State
            if state in lifecycle.TERMINAL
        }

    def _remember_ready(self, command_id: str, at: datetime) -> None:
        if len(self._ready) >= MAX_REMEMBERED_READY:
            del self._ready[next(iter(self._ready))]
        self._ready[command_id] = at


def _between(since: datetime, at: datetime) -> float:
    """Return the seconds between two instants; 0 if the wall clock was set back meanwhile."""
    seconds = (at - since).total_seconds()
    return seconds if seconds > 0 else 0.0


def _zeros(keys: Sequence[str]) -> Counter[str]:
    return Counter(dict.fromkeys(keys, 0))
