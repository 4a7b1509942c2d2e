"""The port for events: log lines and progress of running commands."""

from __future__ import annotations

from typing import Protocol

from arc_protocol.messages.events import EventsRequest
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.ports.records import CommandRecord, EventPage


class EventStore(Protocol):
    """The latest lines of each command, and its progress."""

    async def add_events(
        self, command_id: str, request: EventsRequest, keep: int, within: Reach = EVERYTHING
    ) -> CommandRecord:
        """Record events of the holder of the latest lease, also when the command has just ended.

        A line whose number was recorded under this lease is not recorded again. Of all lines of
        the command the last `keep` stay.

        Raises CommandNotFound, LeaseLost when it is not the latest lease, or another credential's.
        """
        ...

    async def events(self, command_id: str, after: int, limit: int) -> EventPage | None:
        """Return lines after a place, in order; None when there is no such command."""
        ...
