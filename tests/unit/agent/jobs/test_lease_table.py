"""Leases, contact and pace: what the loops share."""

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
from arc_agent.net.connection import BackOff, NoContact, Refused
from arc_agent.net.lease_calls import LeaseAnswer
from arc_agent.net.server_state import ServerState
from arc_agent.work.loop_watch import LoopWatch
from arc_agent.work.poll_wait import PollInterval


class MonotonicClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


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


# ServerState


@pytest.fixture
def contact() -> ServerState:
    return ServerState(MonotonicClock())


def test_contact_is_lost_once_and_back_once(contact: ServerState) -> None:
    backs: list[int] = []
    contact.on_back(lambda: backs.append(contact.epoch))
    with structlog.testing.capture_logs() as events:
        for channel in ("lease", "renew", "submit", "lease"):
            contact.failed(channel, "refused")
        contact.succeeded("renew")
        contact.succeeded("lease")

    assert [event["event"] for event in events] == ["contact.lost", "contact.back"]
    assert backs == [1]
    assert not contact.is_lost


def test_success_of_a_channel_that_never_failed_is_no_news(contact: ServerState) -> None:
    contact.failed("submit", "refused")
    with structlog.testing.capture_logs() as events:
        contact.succeeded("lease")

    assert events == []
    assert contact.is_lost
    assert not contact.fails_beyond("submit")


def test_a_refusal_is_told_apart(contact: ServerState) -> None:
    with structlog.testing.capture_logs() as events:
        contact.failed("lease", "timed out")
        contact.failed("lease", "401", is_refusal=True)
        contact.failed("lease", "401", is_refusal=True)

    assert [event["event"] for event in events] == ["contact.lost", "contact.refused"]


def test_what_a_server_lacks_is_asked_again_after_contact_was_lost(contact: ServerState) -> None:
    contact.lacks("renewal")
    assert not contact.supports("renewal")
    assert contact.supports("agents")

    contact.failed("lease", "refused")
    contact.succeeded("lease")

    assert contact.supports("renewal")


# Back-off


def test_back_off_grows_to_its_cap_with_full_jitter() -> None:
    back_off = BackOff(random.Random(1), 30.0)

    waits = [[back_off.seconds(n, NoContact("x")) for _ in range(200)] for n in (1, 4, 30)]

    assert max(waits[0]) <= 1.0
    assert max(waits[1]) <= 8.0
    assert 25 < max(waits[2]) <= 30.0
    assert min(waits[2]) < 5.0  # a herd spreads over the whole of it


def test_back_off_waits_as_long_as_the_server_asks() -> None:
    back_off = BackOff(random.Random(1), 30.0)

    assert 40 <= back_off.seconds(1, NoContact("x", retry_after=40.0)) <= 41
    assert max(back_off.seconds(1, Refused("x")) for _ in range(50)) > 10


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
    clock = MonotonicClock()
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
