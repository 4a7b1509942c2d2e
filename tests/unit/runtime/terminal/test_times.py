"""Instants as ages."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from arc_runtime.terminal.times import age, instant, local

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "now"),
        (-4, "now"),
        (12, "12s ago"),
        (60, "1m ago"),
        (100, "1m40s ago"),
        (200, "3m ago"),
        (2 * 3600 + 40 * 60, "2h40m ago"),
        (3 * 3600 + 40 * 60, "3h ago"),
        (86_400, "1d ago"),
        (30 * 3600, "1d6h ago"),
        (400 * 86_400, "400d ago"),
        (-90, "in 1m30s"),
    ],
)
def test_an_age_is_short(seconds: float, shown: str) -> None:
    assert age(NOW - timedelta(seconds=seconds), NOW) == shown


def test_an_instant_in_full_can_be_read_back() -> None:
    assert datetime.fromisoformat(instant(NOW)) == NOW


@pytest.mark.parametrize(
    "text", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59Z"]
)
def test_an_instant_at_the_end_of_the_calendar_is_shown(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    moment = datetime.fromisoformat(text)

    assert local(moment) == moment
    assert datetime.fromisoformat(instant(moment)) == moment
    assert age(moment, NOW)
    monkeypatch.undo()
    time.tzset()
