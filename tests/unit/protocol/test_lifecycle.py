import itertools
import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_protocol import lifecycle
from arc_protocol.lifecycle import (
    LIVE,
    TERMINAL,
    TRANSITIONS,
    Handback,
    budget_seconds,
    full_jitter,
    granted_seconds,
    hand_back,
    is_overdue,
    may_follow,
    renew_after_seconds,
    sources,
)
from arc_protocol.messages.base import State

NOW = datetime(2026, 11, 23, 20, tzinfo=UTC)

ALLOWED = {
    ("PENDING_UPLOAD", "PENDING"),
    ("PENDING_UPLOAD", "FAILED"),
    ("PENDING_UPLOAD", "EXPIRED"),
    ("PENDING", "DISPATCHED"),
    ("PENDING", "FAILED"),
    ("PENDING", "EXPIRED"),
    ("DISPATCHED", "PENDING"),
    ("DISPATCHED", "SUCCEEDED"),
    ("DISPATCHED", "FAILED"),
    ("DISPATCHED", "EXPIRED"),
}
"""docs/protocol.md, Lifecycle, row by row."""


@pytest.mark.parametrize(("state", "following"), list(itertools.product(State, State)))
def test_a_transition_is_allowed_exactly_when_the_protocol_has_it(
    state: State, following: State
) -> None:
    allowed = (state.value, following.value) in ALLOWED

    assert may_follow(state, following) == allowed
    assert (state in sources(following)) == allowed


def test_the_states_are_the_six_of_the_wire_and_all_are_in_the_table() -> None:
    assert {state.value for state in State} == {
        *("PENDING_UPLOAD", "PENDING", "DISPATCHED", "SUCCEEDED", "FAILED", "EXPIRED")
    }
    assert TRANSITIONS.keys() == set(State)


def test_terminal_states_are_those_that_nothing_follows() -> None:
    assert {State.SUCCEEDED, State.FAILED, State.EXPIRED} == TERMINAL
    assert {State.PENDING_UPLOAD, State.PENDING, State.DISPATCHED} == LIVE


def test_from_every_live_state_every_end_can_be_reached() -> None:
    for start in LIVE:
        reached, edge = {start}, {start}
        while edge:
            edge = {after for state in edge for after in TRANSITIONS[state]} - reached
            reached |= edge
        assert reached >= TERMINAL


# Handing back


@pytest.mark.parametrize(
    ("attempt", "costs_attempt", "cancel_requested", "outcome"),
    [
        (1, True, False, Handback(State.PENDING, 2)),
        (4, True, False, Handback(State.PENDING, 5)),
        (5, True, False, Handback(State.FAILED, 5, "MAX_ATTEMPTS_EXCEEDED")),
        (6, True, False, Handback(State.FAILED, 6, "MAX_ATTEMPTS_EXCEEDED")),
        (1, False, False, Handback(State.PENDING, 1)),
        (5, False, False, Handback(State.PENDING, 5)),
        (1, True, True, Handback(State.FAILED, 1, "CANCELLED")),
        (5, True, True, Handback(State.FAILED, 5, "CANCELLED")),
        (1, False, True, Handback(State.FAILED, 1, "CANCELLED")),
    ],
)
def test_what_becomes_of_a_command_that_is_handed_back(
    attempt: int, costs_attempt: bool, cancel_requested: bool, outcome: Handback
) -> None:
    assert outcome == hand_back(
        attempt, 5, costs_attempt=costs_attempt, cancel_requested=cancel_requested
    )


@given(st.integers(1, 1000), st.integers(1, 1000), st.booleans(), st.booleans())
def test_a_handback_is_a_transition_and_the_attempt_never_goes_down(
    attempt: int, max_attempts: int, costs_attempt: bool, cancel_requested: bool
) -> None:
    outcome = hand_back(
        attempt, max_attempts, costs_attempt=costs_attempt, cancel_requested=cancel_requested
    )

    assert may_follow(State.DISPATCHED, outcome.state)
    assert outcome.attempt in (attempt, attempt + 1)
    assert outcome.attempt <= max(attempt, max_attempts)
    assert (outcome.failure_code is not None) == (outcome.state is State.FAILED)


@given(st.integers(1, 50))
def test_a_command_that_lapses_each_time_runs_exactly_its_attempts(max_attempts: int) -> None:
    runs, attempt = 1, 1
    while True:
        outcome = hand_back(attempt, max_attempts, costs_attempt=True, cancel_requested=False)
        if outcome.state is State.FAILED:
            break
        runs, attempt = runs + 1, outcome.attempt

    assert runs == attempt == max_attempts


# Deadlines and budgets


def test_a_deadline_has_passed_at_its_very_instant() -> None:
    assert is_overdue(NOW, NOW)
    assert is_overdue(NOW - timedelta(microseconds=1), NOW)
    assert not is_overdue(NOW + timedelta(microseconds=1), NOW)
    assert not is_overdue(None, NOW)


@pytest.mark.parametrize(
    ("lease", "deadline", "timeout", "is_renewed", "budget"),
    [
        (60, None, None, True, float("inf")),
        (60, None, None, False, 55),
        (60, 10, None, False, 10),
        (60, 10, None, True, 10),
        (60, 58, None, False, 55),
        (60, 600, None, True, 600),
        (60, None, 300, True, 300),
        (60, None, 300, False, 55),
        (60, None, 30, False, 30),
        (60, 20, 30, True, 20),
        (5, None, None, False, 0),
        (3, None, None, False, 0),
        (-10, None, None, False, 0),
        (-10, None, None, True, float("inf")),
        (60, -1, None, True, 0),
        (60, 0, 5, True, 0),
    ],
)
def test_the_budget_is_the_nearest_bound_and_never_below_zero(
    lease: float, deadline: float | None, timeout: float | None, is_renewed: bool, budget: float
) -> None:
    assert budget == budget_seconds(
        lease_seconds_left=lease,
        deadline_seconds_left=deadline,
        timeout_seconds=timeout,
        is_renewed=is_renewed,
    )


def test_an_agent_of_1_x_gets_a_lease_that_outlives_its_longest_command() -> None:
    assert granted_seconds(60, is_legacy_agent=True) == 330
    assert granted_seconds(600, is_legacy_agent=True) == 600
    assert granted_seconds(60, is_legacy_agent=False) == 60
    assert granted_seconds(1, is_legacy_agent=False) == 1


@given(st.floats(1, 3600), st.floats(1, 60))
def test_a_renewal_may_fail_twice_before_the_lease_is_over(lease: float, at_most: float) -> None:
    after = renew_after_seconds(lease, at_most=at_most)

    assert after <= at_most
    assert 3 * after <= lease * 1.000001
    assert after > 0


def test_the_end_of_a_lease_is_counted_from_now() -> None:
    assert lifecycle.expires_at(NOW, 0.5) == NOW + timedelta(milliseconds=500)


# Back-off


@given(st.integers(0, 10_000), st.integers())
def test_a_back_off_lies_between_zero_and_its_growing_cap(failures: int, seed: int) -> None:
    wait = full_jitter(failures, base_seconds=0.5, cap_seconds=30, source=random.Random(seed))

    assert 0 <= wait <= min(30, 0.5 * 2 ** min(failures, 32))


def test_back_offs_are_spread_over_the_whole_range() -> None:
    source = random.Random(7)
    waits = [
        full_jitter(20, base_seconds=0.5, cap_seconds=30, source=source) for _ in range(10_000)
    ]

    assert min(waits) < 0.1
    assert max(waits) > 29.9
    assert abs(sum(waits) / len(waits) - 15) < 0.3
