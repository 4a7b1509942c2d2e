"""Shares of tokens: requests at a time, and by the second."""

from __future__ import annotations

import pytest

from arc_protocol.errors import RateLimited
from arc_server.http.limits import HttpLimits
from arc_server.http.rates import BURST_SECONDS, MAX_KEYS, MAX_WAIT_SECONDS
from arc_server.http.shares import Shares


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def shares(clock: Clock, **limits: float) -> Shares:
    return Shares(HttpLimits(**limits), clock)  # pyright: ignore[reportArgumentType]


def ask(shares: Shares, token: str = "a", *, may_wait: bool = False) -> float:
    """Begin and end one request; how long it has to wait."""
    wait = shares.begin(token, may_wait=may_wait)
    shares.end(token)
    return wait


def test_a_burst_is_free_and_the_next_is_refused_until_time_passes(clock: Clock) -> None:
    tokens = shares(clock, requests_per_second=5)

    for _ in range(int(5 * BURST_SECONDS)):
        assert ask(tokens) == 0
    with pytest.raises(RateLimited) as refused:
        ask(tokens)
    assert refused.value.context == {
        "retry_after_seconds": 1,
        "limit_of": "token",
        "per_second": 5,
    }

    clock.now += 0.2
    assert ask(tokens) == 0


def test_one_token_does_not_use_up_what_another_has(clock: Clock) -> None:
    tokens = shares(clock, requests_per_second=1)
    for _ in range(2):
        ask(tokens, "a")

    with pytest.raises(RateLimited):
        ask(tokens, "a")
    assert ask(tokens, "b") == 0


def test_a_read_waits_for_its_turn_one_after_the_other(clock: Clock) -> None:
    tokens = shares(clock, requests_per_second=2)
    for _ in range(4):
        ask(tokens)

    waits = [ask(tokens, may_wait=True) for _ in range(3)]

    assert waits == pytest.approx([0.5, 1.0, 1.5])


def test_a_read_is_never_refused_and_its_wait_has_an_end(clock: Clock) -> None:
    tokens = shares(clock, requests_per_second=1)

    waits = [ask(tokens, may_wait=True) for _ in range(10 * int(MAX_WAIT_SECONDS))]
    clock.now += MAX_WAIT_SECONDS

    assert max(waits) == MAX_WAIT_SECONDS
    assert ask(tokens, may_wait=True) <= 1, "reads that no caller waited for are not owed"


def test_so_many_requests_of_a_token_run_at_a_time_beside_reads_that_wait(clock: Clock) -> None:
    tokens = shares(clock, max_requests_per_token=2)
    tokens.begin("a", may_wait=False)
    tokens.begin("a", may_wait=False)

    with pytest.raises(RateLimited):
        tokens.begin("a", may_wait=False)
    tokens.begin("b", may_wait=False)
    tokens.begin("a", may_wait=True)

    for _ in range(2):
        tokens.end("a")
    tokens.begin("a", may_wait=False)


def test_a_clock_that_goes_back_gives_nothing_away(clock: Clock) -> None:
    tokens = shares(clock, requests_per_second=1)
    for _ in range(2):
        ask(tokens)
    clock.now -= 50

    with pytest.raises(RateLimited):
        ask(tokens)


def test_the_quietest_token_is_forgotten_first(clock: Clock) -> None:
    tokens = shares(clock, requests_per_second=1)
    for _ in range(2):
        ask(tokens, "a")
    for number in range(MAX_KEYS - 1):
        ask(tokens, f"token {number}")

    with pytest.raises(RateLimited):
        ask(tokens, "a")
    for number in range(MAX_KEYS):
        ask(tokens, f"other {number}")
    assert ask(tokens, "a") == 0
