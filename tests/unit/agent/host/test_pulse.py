"""When a loop counts as stuck, and what the status line says."""

from __future__ import annotations

import math

import pytest

from arc_agent.host.pulse import LATE_SECONDS, Pulse
from arc_agent.host.systemd import status_text
from tests.support.clocks import AgentClock


@pytest.fixture
def clock() -> AgentClock:
    return AgentClock()


def test_a_loop_is_stuck_when_it_takes_longer_than_it_said(clock: AgentClock) -> None:
    pulse = Pulse(clock)
    pulse.within(30)

    clock.now += 30 + LATE_SECONDS - 0.1
    assert not pulse.is_stuck()
    clock.now += 0.2
    assert pulse.is_stuck()
    pulse.within(1)
    assert not pulse.is_stuck()


def test_a_loop_that_waits_for_something_to_happen_is_never_stuck(clock: AgentClock) -> None:
    pulse = Pulse(clock)
    pulse.within(math.inf)

    clock.now += 1e6
    assert not pulse.is_stuck()


def test_a_wait_is_right_only_while_its_reason_holds(clock: AgentClock) -> None:
    pulse, is_full = Pulse(clock), True
    pulse.within(1)

    with pulse.resting(lambda: is_full):
        clock.now += 1000
        assert not pulse.is_stuck()
        is_full = False
        clock.now += LATE_SECONDS - 1
        assert not pulse.is_stuck(), "it was right a moment ago"
        clock.now += 2
        assert pulse.is_stuck()
    assert not pulse.is_stuck()


def test_nobody_waits_for_a_loop_that_was_told_to_end(clock: AgentClock) -> None:
    pulse = Pulse(clock)
    pulse.within(1)
    pulse.ends()

    clock.now += 1000
    assert not pulse.is_stuck()


@pytest.mark.parametrize(
    ("seconds", "is_lost", "says"),
    [
        (None, False, "0 running, 3 done, no contact yet"),
        (2.4, False, "0 running, 3 done, last contact 2 s ago"),
        (95, True, "0 running, 3 done, no contact for 95 s"),
        (600, True, "0 running, 3 done, no contact for 10 min"),
        (90_000, True, "0 running, 3 done, no contact for 25 h"),
    ],
)
def test_the_status_says_when_the_server_was_last_heard(
    seconds: float | None, is_lost: bool, says: str
) -> None:
    text = status_text(running=0, done=3, waiting=0, answered_seconds_ago=seconds, is_lost=is_lost)

    assert text == says


def test_the_status_tells_what_is_not_delivered_yet() -> None:
    text = status_text(running=1, done=3, waiting=2, answered_seconds_ago=0, is_lost=False)

    assert text == "1 running, 3 done, 2 to deliver, last contact 0 s ago"
