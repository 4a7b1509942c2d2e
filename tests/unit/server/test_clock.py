"""The real clock, as far as it can be seen without setting the host's."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from arc_server.clock import SystemClock


def test_it_says_what_the_wall_clock_says_in_utc() -> None:
    clock = SystemClock()

    before = datetime.now(UTC)
    now = clock.now()
    after = datetime.now(UTC)

    assert now.tzinfo is UTC
    assert (before - now).total_seconds() < 0.1
    assert (now - after).total_seconds() < 0.1
    assert clock.drift() == pytest.approx(0, abs=0.1)


def test_a_wall_clock_that_is_set_moves_nothing_until_it_is_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SystemClock()
    before = clock.now()

    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + 3_600)

    assert (clock.now() - before).total_seconds() < 1
    drift = clock.drift()
    assert drift == pytest.approx(3_600, abs=1)
    clock.adjust(drift)
    assert (clock.now() - before).total_seconds() == pytest.approx(3_600, abs=1)
    assert clock.drift() == pytest.approx(0, abs=0.1)


async def test_it_sleeps_for_as_long_as_it_says() -> None:
    clock = SystemClock()
    begun = clock.monotonic()

    await clock.sleep(0.01)

    assert clock.monotonic() - begun >= 0.009


def test_the_time_that_the_machine_sleeps_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SystemClock()
    before = clock.now()
    boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    asleep = {time.CLOCK_BOOTTIME: boot + 600, time.CLOCK_MONOTONIC: boot}

    monkeypatch.setattr("time.clock_gettime", asleep.__getitem__)

    assert clock.monotonic() == boot + 600
    assert (clock.now() - before).total_seconds() == pytest.approx(600, abs=1)
