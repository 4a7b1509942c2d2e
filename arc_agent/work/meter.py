"""The meter counts the agent's work. It counts nothing unless `metrics.listen` is set."""

from __future__ import annotations

from typing import Final, Protocol

from arc_agent.jobs.outcome import Outcome


class MetricsError(Exception):
    """The endpoint for metrics cannot be opened; the message is one clear line."""

    may_pass: Final = True
    """The process that has the port may give it up."""


class Meter(Protocol):
    """The counting methods. They cost little, and none of them raises."""

    def ended(self, command: str, outcome: Outcome, *, is_known: bool) -> None:
        """Count a command that ended. `is_known`: a handler has that name."""
        ...

    def handled(self, command: str, seconds: float) -> None:
        """Count a handler that returned, raised or was stopped after so long."""
        ...

    def renewed(self, count: int) -> None:
        """Count renewed leases. Safe from any thread."""
        ...

    def polled(self, seconds: float, *, is_held: bool) -> None:
        """Count an answered lease request; `is_held`: the server was asked to wait."""
        ...


class NoMeter:
    """A meter that counts nothing."""

    def ended(self, command: str, outcome: Outcome, *, is_known: bool) -> None: ...

    def handled(self, command: str, seconds: float) -> None: ...

    def renewed(self, count: int) -> None: ...

    def polled(self, seconds: float, *, is_held: bool) -> None: ...
