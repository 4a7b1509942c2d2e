"""The pace of a body, and the memory of all bodies."""

from __future__ import annotations

import pytest

from arc_protocol.errors import RequestTimeout, Unavailable
from arc_server.http.body_reading import BodyMemory, Pace
from arc_server.http.limits import HttpLimits

LIMITS = HttpLimits(body_seconds=10, body_bytes_per_second=100)


def test_a_stretch_without_its_bytes_ends_the_body() -> None:
    pace = Pace(LIMITS, None)
    assert pace.patience_seconds() == 10
    pace.advance(4, 999)
    assert pace.patience_seconds() == 6

    with pytest.raises(RequestTimeout):
        pace.advance(6, 0)


def test_each_stretch_is_measured_by_itself() -> None:
    pace = Pace(LIMITS, None)
    pace.advance(10, 1_000_000)
    assert pace.patience_seconds() == 10

    with pytest.raises(RequestTimeout):
        pace.advance(10, 999)


def test_time_in_which_the_server_does_not_wait_is_free() -> None:
    pace = Pace(LIMITS, 60)

    for _ in range(1000):
        pace.advance(0, 0)

    assert pace.patience_seconds() == 10


def test_a_whole_body_has_a_time_of_its_own() -> None:
    pace = Pace(LIMITS, 25)
    pace.advance(10, 5000)
    pace.advance(10, 5000)
    assert pace.patience_seconds() == 5

    with pytest.raises(RequestTimeout):
        pace.advance(5, 5000)


def test_bodies_share_the_memory_and_one_caller_gets_half() -> None:
    memory = BodyMemory(1000)
    memory.take("a", 500)
    with pytest.raises(Unavailable):
        memory.take("a", 1)

    memory.take("b", 300)
    memory.take(None, 200)
    with pytest.raises(Unavailable):
        memory.take("c", 1)

    memory.give_back("a", 500)
    memory.take("c", 500)
    with pytest.raises(Unavailable):
        memory.take("b", 1)
