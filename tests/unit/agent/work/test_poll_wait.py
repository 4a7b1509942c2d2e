"""The poller's patience: how long a poll may be held, and how long it rests after an answer."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from arc_agent.config.sections import PollSection
from arc_agent.net.lease_calls import LeaseAnswer
from arc_agent.work.poll_wait import PollInterval, PollWait


class Polls:
    """A poller's view of a network that cuts after so long."""

    def __init__(self) -> None:
        self.now = 0.0
        self.hold = PollWait(lambda: self.now)
        self.cut_after = 1e9
        self.quiet: list[bool] = []

    def poll(self, configured: float = 25.0) -> float:
        """One poll without work; the wait that was asked for."""
        asked = self.hold.seconds(configured)
        if asked > self.cut_after:
            self.now += self.cut_after
            self.quiet.append(self.hold.broke_off(asked, self.cut_after, status=None, was_cut=True))
        else:
            self.now += asked
            self.hold.ended(asked, asked)
        return asked


@pytest.mark.parametrize("cut_after", [5.0, 10.0, 15.0, 20.0, 24.0])
def test_a_wait_that_is_cut_twice_is_shortened_and_stays_below(cut_after: float) -> None:
    polls = Polls()
    polls.cut_after = cut_after
    asked = [polls.poll() for _ in range(400)]

    assert asked[:2] == [25.0, 25.0]
    assert asked[2] == pytest.approx(0.8 * cut_after)
    assert all(polls.quiet)
    assert len(polls.quiet) <= 2 + polls.now / 3600  # it is tried again once an hour
    assert asked[-1] > 0.85 * cut_after


def test_a_network_that_cuts_no_more_gets_the_whole_wait_back() -> None:
    polls = Polls()
    polls.cut_after = 10.0
    for _ in range(3):
        polls.poll()
    polls.cut_after = 1e9
    asked = [polls.poll() for _ in range(1000)]

    assert asked[-1] == 25.0
    assert asked == sorted(asked)


def test_one_cut_is_a_server_that_was_stopped() -> None:
    polls = Polls()
    for cut_after in (20.0, 3.5, 12.0):
        polls.cut_after = cut_after
        assert polls.poll() == 25.0
        polls.cut_after = 1e9
        assert polls.poll() == 25.0
    assert polls.quiet == [True, True, True]


def test_a_network_that_cuts_every_poll_is_lost_after_the_second() -> None:
    polls = Polls()
    quiet = [polls.hold.broke_off(25, 4, status=504, was_cut=False) for _ in range(4)]

    assert quiet == [True, True, False, False]


def test_what_cannot_be_sent_at_all_is_no_cut() -> None:
    hold = PollWait(lambda: 0.0)

    assert not hold.broke_off(25, 10, status=None, was_cut=False)
    assert hold.broke_off(0, 10, status=None, was_cut=True) is False
    assert hold.seconds(25) == 25


def test_a_poll_that_is_never_answered_is_asked_for_with_half_the_wait() -> None:
    hold = PollWait(lambda: 0.0)
    waits: list[float] = []
    for _ in range(5):
        waits.append(hold.seconds(25))
        hold.was_lost(waits[-1])

    assert waits == [25, 12.5, 6.25, 3.125, 2.0]


# The rest after an answer


def answer(**fields: Any) -> LeaseAnswer:
    """An empty answer, but for some fields."""
    empty = LeaseAnswer(leases=[], broken=[], cancelled=[], server_now=None, shows_extensions=False)
    return msgspec.structs.replace(empty, **fields)


POLITE = PollSection(jitter=0)


def test_an_early_empty_answer_means_intervals_that_double() -> None:
    pace = PollInterval(random.Random(1))

    waits = [
        pace.after(POLITE, answer(), asked_seconds=25, took_seconds=0.1, has_extensions=False)
        for _ in range(5)
    ]

    assert waits == [5, 10, 20, 30, 30]
    assert not pace.is_long_poll


def test_an_answer_that_took_its_time_means_long_poll_again() -> None:
    pace = PollInterval(random.Random(1))
    pace.after(POLITE, answer(), asked_seconds=25, took_seconds=0.1, has_extensions=False)

    assert (
        pace.after(POLITE, answer(), asked_seconds=25, took_seconds=25, has_extensions=False) == 0
    )
    assert pace.is_long_poll


def test_a_server_of_ours_may_answer_early_a_few_times() -> None:
    pace = PollInterval(random.Random(1))

    waits = [
        pace.after(POLITE, answer(), asked_seconds=25, took_seconds=1, has_extensions=True)
        for _ in range(4)
    ]

    assert max(waits[:3]) <= 1
    assert waits[3] == 5
    assert not pace.is_long_poll


def test_work_is_followed_by_the_next_request_at_once() -> None:
    pace = PollInterval(random.Random(1))
    pace.after(POLITE, answer(), asked_seconds=25, took_seconds=0.1, has_extensions=False)
    pace.after(POLITE, answer(), asked_seconds=25, took_seconds=0.1, has_extensions=False)

    assert (
        pace.after(
            POLITE, answer(cancelled=["x"]), asked_seconds=25, took_seconds=0, has_extensions=False
        )
        == 0
    )
    assert (
        pace.after(POLITE, answer(), asked_seconds=25, took_seconds=0.1, has_extensions=False) == 5
    )


def test_intervals_vary_by_the_jitter() -> None:
    waits = [
        PollInterval(random.Random(seed)).after(
            PollSection(), answer(), asked_seconds=25, took_seconds=0, has_extensions=False
        )
        for seed in range(50)
    ]

    assert 4.5 <= min(waits) < 4.7
    assert 5.3 < max(waits) <= 5.5


def test_without_any_wait_asked_for_it_goes_by_intervals() -> None:
    pace = PollInterval(random.Random(1))

    assert pace.after(POLITE, answer(), asked_seconds=0, took_seconds=10, has_extensions=False) == 5
