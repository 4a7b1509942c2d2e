"""The port for events: log lines and progress of running commands."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Protocol

from arc_protocol.messages.events import EventsRequest
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.ports.records import DEFAULT_QUOTAS, CommandRecord, EventPage, Quotas

LATE_SECONDS: Final = 60
"""Events may come for so long after the end of their command: an agent that lost contact tries
again after 30 s at most."""
LINE_BYTES: Final = 32
"""The bytes that a line counts beside its message, for its row."""
_SHARE_OF_BODIES: Final = 4
"""One part in so many of `max_stored_bytes` is for bodies alone."""


def size_of_line(message: str) -> int:
    """Return the bytes that a line counts in the quota of its deployment."""
    return len(message.encode()) + LINE_BYTES


def most_stored_with_events(quotas: Quotas) -> int:
    """Return the stored bytes of a deployment from which on its events are dropped.

    They stop before the quota does: a log that is long must not be what refuses a create.
    """
    return quotas.max_stored_bytes - quotas.max_stored_bytes // _SHARE_OF_BODIES


class EventStore(Protocol):
    """The latest lines of each command, and its progress."""

    async def add_events(
        self,
        command_id: str,
        request: EventsRequest,
        now: datetime,
        keep: int,
        quotas: Quotas = DEFAULT_QUOTAS,
        within: Reach = EVERYTHING,
    ) -> CommandRecord:
        """Record events of the holder of the latest lease, also when the command has just ended.

        A line whose number was recorded under this lease is not recorded again. Of all lines of
        the command the last `keep` stay. Where the deployment has stored `most_stored_with_events`,
        lines are dropped and counted, and progress loses its text.

        Raises CommandNotFound, LeaseLost when it is not the latest lease, or another credential's,
        or the command ended more than LATE_SECONDS ago.
        """
        ...

    async def events(self, command_id: str, after: int, limit: int) -> EventPage | None:
        """Return lines after a place, in order; None when there is no such command."""
        ...
