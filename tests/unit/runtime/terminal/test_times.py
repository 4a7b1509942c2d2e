"""Instants as ages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from arc_runtime.terminal.times import age, instant

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
