"""What is counted of an agent's work: nothing, unless `metrics.listen` is set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from arc_agent.jobs.outcome import Outcome

if TYPE_CHECKING:
    from arc_agent.guard.pause import Pause
    from arc_agent.jobs.spool import Spool
    from arc_agent.net.server_state import Contact
    from arc_agent.work.runner import Runner


class MetricsError(Exception):
    """The endpoint cannot be opened; the message is one clear line."""

    may_pass: Final = True
    """Whoever has the port may give it up."""


class Meter:
    """Counts nothing. `metrics.py` has the one that does."""

    async def open(self, *, runner: Runner, spool: Spool, contact: Contact, pause: Pause) -> None:
        """Begin to tell, of these too. Raises MetricsError."""

    async def close(self) -> None:
        """Tell no more."""

    def ended(self, command: str, outcome: Outcome, *, is_known: bool) -> None:
        """A command has come to an end. `is_known`: a handler has that name."""

    def handled(self, command: str, seconds: float) -> None:
        """A handler returned, raised or was stopped after so long."""

    def renewed(self, count: int) -> None:
        """So many leases were renewed. From any thread."""

    def polled(self, seconds: float, *, is_held: bool) -> None:
        """A lease request was answered after so long; `is_held`: the server might wait."""
