"""The lifecycle of a command: transitions as data, attempts, leases and budgets as pure functions.

The rules: docs/protocol.md, Lifecycle.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

import msgspec

from arc_protocol.messages.base import State

TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    State.PENDING_UPLOAD: frozenset({State.PENDING, State.FAILED, State.EXPIRED}),
    State.PENDING: frozenset({State.DISPATCHED, State.FAILED, State.EXPIRED}),
    State.DISPATCHED: frozenset({State.PENDING, State.SUCCEEDED, State.FAILED, State.EXPIRED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.EXPIRED: frozenset(),
}
"""The states that may follow each state. A terminal state has none."""

TERMINAL: Final = frozenset(state for state, following in TRANSITIONS.items() if not following)
LIVE: Final = frozenset(State) - TERMINAL

CANCELLED: Final = "CANCELLED"
MAX_ATTEMPTS_EXCEEDED: Final = "MAX_ATTEMPTS_EXCEEDED"
DELIVERY_FAILED: Final = "DELIVERY_FAILED"

LEGACY_LEASE_SECONDS: Final = 330
"""The shortest lease of a 1.x agent, which runs a command for up to 300 s and never renews."""
SUBMIT_MARGIN_SECONDS: Final = 5.0
"""A handler leaves this much of a lease that cannot be renewed, to submit its response."""


class ShownState(StrEnum):
    """A state as people see it: on the wire a cancelled command is FAILED."""

    PENDING_UPLOAD = State.PENDING_UPLOAD
    PENDING = State.PENDING
    DISPATCHED = State.DISPATCHED
    SUCCEEDED = State.SUCCEEDED
    FAILED = State.FAILED
    CANCELLED = CANCELLED
    EXPIRED = State.EXPIRED

    @property
    def stored(self) -> State:
        """Return the state on the wire."""
        return State.FAILED if self is ShownState.CANCELLED else State(self.value)


def may_follow(state: State, following: State) -> bool:
    """Return True if `state` → `following` is a transition of the table."""
    return following in TRANSITIONS[state]


def sources(following: State) -> frozenset[State]:
    """Return the states from which `following` can be reached in one step."""
    return frozenset(state for state, nexts in TRANSITIONS.items() if following in nexts)


def is_overdue(deadline: datetime | None, now: datetime) -> bool:
    """Return True if the deadline has passed; at the very instant it has."""
    return deadline is not None and now >= deadline


def is_delayed(not_before: datetime | None, now: datetime) -> bool:
    """Return True until the instant comes before which a command does not run."""
    return not_before is not None and now < not_before


class LeaseEnd(StrEnum):
    """The end of a lease that had no response."""

    RELEASED = "RELEASED"
    """The holder gave it back, or a push was not accepted."""
    RETURNED = "RETURNED"
    """Given back without cost: the holder stopped, or it never reached one."""
    LAPSED = "LAPSED"
    REVOKED = "REVOKED"
    """The credential of its holder was revoked."""


class Handback(msgspec.Struct, frozen=True):
    """A handback is what becomes of a command whose lease ended without a response.

    `failure_code` is set when `state` is FAILED.
    """

    state: State
    attempt: int
    failure_code: str | None = None


def hand_back(
    attempt: int, max_attempts: int, *, costs_attempt: bool, cancel_requested: bool
) -> Handback:
    """Decide between redelivery and failure after a release or a lapse.

    A cancelled command is not run again. A drain's release and a lease that never reached its
    holder cost no attempt.
    """
    if cancel_requested:
        return Handback(State.FAILED, attempt, CANCELLED)
    if not costs_attempt:
        return Handback(State.PENDING, attempt)
    if attempt >= max_attempts:
        return Handback(State.FAILED, attempt, MAX_ATTEMPTS_EXCEEDED)
    return Handback(State.PENDING, attempt + 1)


def granted_seconds(asked: float, *, is_legacy_agent: bool) -> float:
    """Return the length of a lease: the requested one; for a 1.x agent at least 330 s."""
    return max(asked, LEGACY_LEASE_SECONDS) if is_legacy_agent else asked


def budget_seconds(
    *,
    lease_seconds_left: float,
    deadline_seconds_left: float | None,
    timeout_seconds: float | None,
    is_renewed: bool,
) -> float:
    """Return how many seconds a handler may run from now, never below 0.

    A lease that is renewed while the handler runs does not bound it. One that cannot be renewed
    does, less the margin for submitting the response.
    """
    bounds = [
        bound
        for bound in (
            deadline_seconds_left,
            timeout_seconds,
            None if is_renewed else lease_seconds_left - SUBMIT_MARGIN_SECONDS,
        )
        if bound is not None
    ]
    return max(0.0, min(bounds, default=float("inf")))


def renew_after_seconds(lease_seconds: float, *, at_most: float) -> float:
    """Return when to renew: a third into the lease, so that two tries may fail, or at `at_most`."""
    return min(lease_seconds / 3, at_most)


def full_jitter(
    failures: int, *, base_seconds: float, cap_seconds: float, source: random.Random
) -> float:
    """Return a random back-off of 0 to `base · 2^failures` seconds, capped: it spreads a herd."""
    ceiling = min(cap_seconds, base_seconds * 2.0 ** min(failures, 32))
    return source.uniform(0, ceiling)


def expires_at(now: datetime, seconds: float) -> datetime:
    """Return the instant `seconds` after `now`."""
    return now + timedelta(seconds=seconds)
