"""Leases and the intervals of polls: what the loops share."""

from __future__ import annotations

from typing import Any

import pytest

from arc_agent.jobs.lease_table import End, HeldLease, LeaseTable
from arc_agent.jobs.outcome import Dropped, Failed, GivenBack, Succeeded
from arc_agent.jobs.responses import what_counts


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
    assert held.is_stopped


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
