"""Circuits keep a receiver that is away from using up sends, and attempts of commands.

A deployment's circuit is *closed* while its receiver answers. After some failures in a row it is
*open*: nothing is sent there for a while. Then it is *half-open*: one command is sent as a probe.
An answer closes the circuit; another failure opens it for longer. Pure: time comes in as an
argument, and the outbox stores what changes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec

from arc_server.ports.records import PushCircuit

LEAST_PAUSE: Final = 0.5
"""The least part of the longest pause: a receiver that comes back is not met by all at once."""


class CircuitLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one deployment; the configuration keys of section `push` have these names."""

    per_deployment: int = 8
    circuit_failures: int = 5
    circuit_base_seconds: float = 5
    circuit_cap_seconds: float = 300


class _Line:
    """A line is what is known of one deployment."""

    def __init__(self) -> None:
        self.sending = 0
        self.failures = 0
        """In a row, while the circuit is closed."""
        self.circuit: PushCircuit | None = None
        """Set while the circuit is not closed."""


class Circuits:
    """The circuits of all deployments. For the event loop only."""

    def __init__(self, limits: CircuitLimits, source: random.Random) -> None:
        self._limits = limits
        self._source = source
        self._lines: dict[str, _Line] = {}

    def load(self, circuits: Sequence[PushCircuit]) -> None:
        """Take over the circuits that are stored; all others are closed."""
        stored = {circuit.deployment_id: circuit for circuit in circuits}
        for deployment_id in stored.keys() | self._lines.keys():
            self._lines.setdefault(deployment_id, _Line()).circuit = stored.get(deployment_id)

    @property
    def not_closed(self) -> int:
        """Return the number of circuits that are open or half-open."""
        return sum(line.circuit is not None for line in self._lines.values())

    def sending(self) -> Mapping[str, int]:
        """Return how many commands are being sent to each deployment."""
        return {name: line.sending for name, line in self._lines.items() if line.sending}

    def room(self, deployment_id: str, now: datetime) -> int:
        """Return how many commands may be sent to a deployment now."""
        line = self._lines.get(deployment_id)
        return self._limits.per_deployment if line is None else self._room(line, now)

    def rooms(self, now: datetime) -> Mapping[str, int]:
        """Return the room of each deployment that has less than all of it."""
        return {
            deployment_id: self._room(line, now)
            for deployment_id, line in self._lines.items()
            if line.sending or line.circuit is not None
        }

    def next_probe_at(self, now: datetime) -> datetime | None:
        """Return when the next open circuit becomes half-open; None if none does."""
        circuits = (line.circuit for line in self._lines.values() if line.circuit)
        probes = (circuit.retry_at for circuit in circuits if self._is_open(circuit, now))
        return min(probes, default=None)

    def begin(self, deployment_id: str) -> None:
        """Count a send until `end`."""
        self._lines.setdefault(deployment_id, _Line()).sending += 1

    def end(self, deployment_id: str) -> None:
        """Count a send no longer."""
        line = self._lines[deployment_id]
        line.sending -= 1
        if not line.sending and not line.failures and line.circuit is None:
            del self._lines[deployment_id]

    def answered(self, deployment_id: str) -> bool:
        """Close the circuit: the receiver has answered. Return True if it was not closed."""
        line = self._lines[deployment_id]
        was_open = line.circuit is not None
        line.failures, line.circuit = 0, None
        return was_open

    def failed(self, deployment_id: str, reason: str, now: datetime) -> PushCircuit | None:
        """Count a failure. Return the circuit if it opens by it."""
        line = self._lines[deployment_id]
        former = line.circuit
        if former is None:
            line.failures += 1
            if line.failures < self._limits.circuit_failures:
                return None
        elif self._is_open(former, now):
            return None  # sent before the circuit opened
        times = 1 if former is None else former.times + 1
        longest = min(
            self._limits.circuit_cap_seconds,
            self._limits.circuit_base_seconds * 2.0 ** min(times - 1, 30),
        )
        pause = longest * self._source.uniform(LEAST_PAUSE, 1)
        line.failures = 0
        line.circuit = PushCircuit(
            deployment_id=deployment_id,
            opened_at=now if former is None else former.opened_at,
            retry_at=now + timedelta(seconds=pause),
            times=times,
            reason=reason[:200],
        )
        return line.circuit

    def _room(self, line: _Line, now: datetime) -> int:
        if line.circuit is None:
            return max(0, self._limits.per_deployment - line.sending)
        return 0 if line.sending or self._is_open(line.circuit, now) else 1

    def _is_open(self, circuit: PushCircuit, now: datetime) -> bool:
        """Return True if a circuit is open; False if it is half-open."""
        # No pause is longer than the cap: a later end is of a wall clock that was ahead then, and
        # has been set back since.
        latest = now + timedelta(seconds=self._limits.circuit_cap_seconds)
        return now < circuit.retry_at <= latest
