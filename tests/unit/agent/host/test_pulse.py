"""When a loop counts as stuck, and what the status line says."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

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


SINCE = datetime(2026, 10, 3, 4, 5, 6, tzinfo=UTC)


def status(**more: Any) -> str:
    """The status of an agent that is in contact, but for what is given."""
    usual: dict[str, Any] = {
        "running": 0, "done": 3, "waiting": 0, "server": "https://arc.example.com",
        "answered_seconds_ago": 2.4, "trouble": None, "is_refused": False,
    }  # fmt: skip
    return status_text(**usual | more)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"answered_seconds_ago": None}, "connecting to https://arc.example.com"),
        ({}, "last contact 2 s ago"),
        ({"answered_seconds_ago": 600}, "last contact 10 min ago"),
        ({"answered_seconds_ago": 90_000}, "last contact 25 h ago"),
        (
            {"trouble": ("connection refused", SINCE)},
            "no contact with https://arc.example.com since 2026-10-03 04:05:06 UTC:"
            " connection refused",
        ),
        (
            {"trouble": ("HTTP 401", SINCE), "is_refused": True},
            "refused by https://arc.example.com since 2026-10-03 04:05:06 UTC: HTTP 401",
        ),
    ],
)
def test_the_status_says_when_the_server_was_last_heard(state: dict[str, Any], says: str) -> None:
    assert status(**state) == f"0 running, 3 done, {says}"


def test_the_status_tells_what_is_not_delivered_yet() -> None:
    text = status(running=1, waiting=2, answered_seconds_ago=0)

    assert text == "1 running, 3 done, 2 to deliver, last contact 0 s ago"
