"""The counts by themselves: latencies of commands that come back, bounds, and the lag of a loop."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from arc_protocol.messages.base import CommandTarget, ResourceType, State
from arc_server.metrics import meter as meters
from arc_server.metrics.histogram import Histogram
from arc_server.metrics.loop_lag import LoopLag
from arc_server.metrics.meter import CountingMeter
from arc_server.ports.meter import Move
from arc_server.ports.records import CommandRecord
from tests.support.waiting import until

NOON = datetime(2026, 12, 1, 12, tzinfo=UTC)
NEW = CommandRecord(
    command_id="cmd_1",
    deployment_id="d",
    target=CommandTarget(resource_id="t", resource_type=ResourceType.DAEMON),
    command="report",
    state=State.PENDING,
    attempt=1,
    max_attempts=5,
    created_at=NOON,
    is_push=False,
)


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def move(command: CommandRecord, was: State | None, state: State, at: float) -> Move:
    return (command, was, state, after(at), False, False)


def lease(command: CommandRecord, at: float, *, is_uploaded: bool = False) -> Move:
    return (command, State.PENDING, State.DISPATCHED, after(at), True, is_uploaded)


def waits(meter: CountingMeter) -> float:
    """The sum of all waits for a lease, in seconds."""
    return meter.lease_seconds.read()[1]


def test_a_new_command_waits_from_its_creation() -> None:
    meter = CountingMeter()

    meter.committed(1, 0, [move(NEW, None, State.PENDING, 0), lease(NEW, 3)])

    assert waits(meter) == 3


def test_a_command_that_was_returned_waits_from_then() -> None:
    meter = CountingMeter()
    held = msgspec.structs.replace(NEW, state=State.DISPATCHED, dispatched_at=after(3))
    back = msgspec.structs.replace(held, state=State.PENDING)

    meter.committed(1, 0, [lease(NEW, 3)])
    meter.committed(1, 0, [move(held, State.DISPATCHED, State.PENDING, 100)])
    meter.committed(1, 0, [lease(back, 110)])

    assert waits(meter) == 3 + 10


def test_a_command_with_an_upload_waits_from_the_end_of_the_upload() -> None:
    meter = CountingMeter()
    uploading = msgspec.structs.replace(NEW, state=State.PENDING_UPLOAD)

    meter.committed(1, 0, [move(uploading, State.PENDING_UPLOAD, State.PENDING, 60)])
    meter.committed(1, 0, [lease(NEW, 61, is_uploaded=True)])

    assert waits(meter) == 1


def test_a_wait_that_began_before_the_process_is_counted_only_if_it_is_known() -> None:
    meter = CountingMeter()
    back = msgspec.structs.replace(NEW, dispatched_at=after(3))

    meter.committed(1, 0, [lease(back, 100), lease(NEW, 100, is_uploaded=True)])

    assert meter.lease_seconds.read()[0][-1] == ("+Inf", 0)


def test_what_is_remembered_of_commands_that_are_ready_has_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meters, "MAX_REMEMBERED_READY", 2)
    meter = CountingMeter()
    commands = [msgspec.structs.replace(NEW, command_id=f"cmd_{n}") for n in range(4)]
    back = [move(each, State.DISPATCHED, State.PENDING, 10) for each in commands]

    meter.committed(4, 0, back)
    again = [msgspec.structs.replace(each, dispatched_at=after(1)) for each in commands]
    meter.committed(4, 0, [lease(each, 11) for each in again])

    assert waits(meter) == 2


def test_a_value_on_a_bound_belongs_below_it_and_no_value_is_lost() -> None:
    histogram = Histogram((1.0, 2.0))

    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)

    assert histogram.read() == ([("1.0", 2.0), ("2.0", 4.0), ("+Inf", 5.0)], 14.0)


async def test_a_loop_that_stood_still_shows_it_once() -> None:
    lag = LoopLag()
    try:
        time.sleep(0.3)

        assert lag.take() >= 0.15  # its timer was due after 0.1 s
        await until(lambda: lag.take() < 0.15)
    finally:
        lag.close()


async def test_a_closed_probe_leaves_no_timer() -> None:
    loop = asyncio.get_running_loop()
    lag = LoopLag()

    lag.close()

    assert all(timer.cancelled() for timer in loop._scheduled)  # type: ignore[attr-defined]
