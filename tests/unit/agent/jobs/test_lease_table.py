"""Leases and the intervals of polls: what the loops share."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest
import structlog

from arc_agent.config.sections import PollSection
from arc_agent.jobs.lease_table import End, HeldLease, LeaseTable
from arc_agent.jobs.outcome import Dropped, Failed, GivenBack, Succeeded
from arc_agent.jobs.responses import what_counts
from arc_agent.net.lease_calls import LeaseAnswer
from arc_agent.work.loop_watch import LoopWatch
from arc_agent.work.poll_wait import PollInterval
from tests.support.clocks import AgentClock


def lease(lease_id: str = "lease_1", command_id: str = "cmd_1") -> HeldLease:
    """A lease of a minute, asked for at 1000."""
    return HeldLease(
        lease_id=lease_id,
        command_id=command_id,
        command="x",
        attempt=1,
        asked_at=1000.0,
        seconds=60.0,
    )


# Leases


def test_the_first_reason_to_stop_stands() -> None:
    held = lease()

    assert held.stop(End.CANCELLED)
    assert not held.stop(End.LOST)
    assert held.end is End.CANCELLED
    assert held.stopped.is_set()


def test_nothing_stops_what_is_finished() -> None:
    held = lease()

    assert held.finish() is None
    assert not held.stop(End.LOST)
    assert held.end is None


def test_who_listens_late_is_told_at_once() -> None:
    held, told = lease(), list[str]()
    held.on_change(lambda: told.append("early"))
    held.stop(End.LOST)
    held.on_change(lambda: told.append("late"))

    assert told == ["early", "late"]


def test_a_renewal_never_shortens_a_lease() -> None:
    table, held = LeaseTable(), lease()
    table.add(held)

    table.extend("lease_1", asked_at=1010.0, seconds=5.0)
    assert held.ends_at == 1060.0
    table.extend("lease_1", asked_at=1020.0, seconds=60.0)
    assert held.ends_at == 1080.0
    table.extend("unknown", asked_at=1020.0, seconds=60.0)


def test_a_command_is_found_by_the_lease_that_holds_it() -> None:
    table = LeaseTable()
    table.add(lease("lease_1", "cmd_1"))
    table.add(lease("lease_2", "cmd_1"))

    table.remove("lease_1")
    assert table.of_command("cmd_1") is table.get("lease_2")
    table.remove("lease_2")
    assert table.of_command("cmd_1") is None


@pytest.mark.parametrize(
    ("end", "outcome", "counts"),
    [
        (None, Succeeded(b"1"), Succeeded(b"1")),
        (End.CANCELLED, Succeeded(b"1"), Failed("CANCELLED", "the command was cancelled")),
        (End.LOST, Succeeded(b"1"), Dropped("lost")),
        (End.LAPSED, Succeeded(b"1"), Dropped("lapsed")),
        (End.DRAIN, Dropped("stopped"), GivenBack("drain")),
        (End.TIMEOUT, GivenBack("params_unavailable"), GivenBack("params_unavailable")),
    ],
)
def test_the_reason_to_stop_counts_not_what_came_after(end: Any, outcome: Any, counts: Any) -> None:
    assert what_counts(end, outcome) == counts


# PollInterval


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


# The main loop


async def test_a_loop_that_stands_still_is_told_once_and_its_end_too() -> None:
    clock = AgentClock()
    watch = LoopWatch(asyncio.get_running_loop(), clock, LeaseTable())
    with structlog.testing.capture_logs() as events:
        watch.check(5.0)  # asks; this loop does not run before it is let
        clock.now += 4
        watch.check(5.0)
        assert events == []
        clock.now += 2
        watch.check(5.0)
        watch.check(5.0)
        await asyncio.sleep(0)  # now it answers
        watch.check(5.0)

    assert [event["event"] for event in events] == [
        "handler.blocking",
        "handler.blocking_ended",
    ]
    assert events[0]["seconds"] == 6.0
