"""Circuits, moved by hand: who may be sent to, and when again."""

from __future__ import annotations

import random
from datetime import timedelta

from arc_server.ports.records import PushCircuit
from arc_server.push.circuits import LEAST_PAUSE, CircuitLimits, Circuits
from tests.support.clocks import START

LIMITS = CircuitLimits(
    per_deployment=3, circuit_failures=2, circuit_base_seconds=10, circuit_cap_seconds=60
)


def circuits(seed: int = 1) -> Circuits:
    return Circuits(LIMITS, random.Random(seed))


def fail(lines: Circuits, times: int = 1, *, at: float = 0) -> PushCircuit | None:
    """Sends that fail, one after the other."""
    opened = None
    for _ in range(times):
        lines.begin("d1")
        opened = lines.failed("d1", "HTTP 503", START + timedelta(seconds=at))
        lines.end("d1")
    return opened


def test_a_deployment_has_a_limit_of_its_own() -> None:
    lines = circuits()
    for _ in range(2):
        lines.begin("d1")

    assert (lines.room("d1", START), lines.room("d2", START)) == (1, 3)
    assert lines.rooms(START) == {"d1": 1}
    lines.begin("d1")
    assert lines.rooms(START) == {"d1": 0}
    for _ in range(3):
        lines.end("d1")
    assert lines.rooms(START) == {}


def test_it_opens_after_failures_in_a_row_alone() -> None:
    lines = circuits()
    assert fail(lines) is None
    lines.begin("d1")
    assert not lines.answered("d1")
    lines.end("d1")

    assert fail(lines) is None
    circuit = fail(lines)

    assert circuit is not None
    assert (circuit.times, circuit.reason, circuit.opened_at) == (1, "HTTP 503", START)
    assert lines.room("d1", START) == 0
    assert lines.room("d2", START) == 3


def test_what_was_sent_before_it_opened_does_not_count_again() -> None:
    lines = circuits()
    for _ in range(3):
        lines.begin("d1")
    opened = [lines.failed("d1", "HTTP 503", START) for _ in range(3)]

    assert [circuit is not None for circuit in opened] == [False, True, False]


def test_one_probe_at_a_time_and_its_answer_closes_the_circuit() -> None:
    lines = circuits()
    circuit = fail(lines, 2)
    assert circuit is not None
    just_before = circuit.retry_at - timedelta(microseconds=1)

    assert lines.next_probe_at(START) == circuit.retry_at
    assert lines.room("d1", just_before) == 0
    assert lines.room("d1", circuit.retry_at) == 1
    lines.begin("d1")
    assert lines.room("d1", circuit.retry_at) == 0
    assert lines.answered("d1")
    lines.end("d1")

    assert lines.room("d1", circuit.retry_at) == 3
    assert lines.next_probe_at(START) is None


def test_each_failed_probe_doubles_the_pause_up_to_a_cap_with_jitter() -> None:
    lines = circuits()
    circuit, at = fail(lines, 2), 0.0
    pauses: list[float] = []
    for times in range(1, 8):
        assert circuit is not None
        assert circuit.times == times
        assert circuit.opened_at == START
        pauses.append((circuit.retry_at - START).total_seconds() - at)
        at = (circuit.retry_at - START).total_seconds()
        circuit = fail(lines, at=at)

    for pause, longest in zip(pauses, (10, 20, 40, 60, 60, 60, 60), strict=True):
        assert longest * LEAST_PAUSE <= pause <= longest
    assert len(set(pauses)) == len(pauses)
    assert circuits(2).room("d1", START) == 3


def test_a_stored_circuit_stays_open_after_a_restart() -> None:
    before = circuits()
    circuit = fail(before, 2)
    assert circuit is not None

    after = circuits()
    after.load([circuit])
    assert after.room("d1", START) == 0
    assert after.room("d1", circuit.retry_at) == 1

    after.load([])
    assert after.room("d1", START) == 3


def test_a_clock_that_is_set_back_leaves_no_circuit_open_for_longer_than_the_cap() -> None:
    lines, restarted = circuits(), circuits()
    circuit = fail(lines, 2, at=86_400)
    assert circuit is not None
    restarted.load([circuit])

    for each in (lines, restarted):
        assert each.room("d1", START) == 1
        assert each.next_probe_at(START) is None
        again = fail(each)
        assert again is not None
        assert each.room("d1", START) == 0
        assert again.retry_at <= START + timedelta(seconds=LIMITS.circuit_cap_seconds)
