"""The lookup finds the command that a request names."""

from __future__ import annotations

from arc_protocol import lifecycle
from arc_protocol.errors import CommandNotFound
from arc_server.ports.clock import Clock
from arc_server.ports.commands import CommandLookup
from arc_server.ports.reach import Reach
from arc_server.ports.records import CommandWithResponse
from arc_server.service.announcements import Announcements

EXPIRE_BATCH = 1_000
"""Overdue commands that one lookup ends at most; the sweeper ends the rest."""


class Lookup:
    """Commands by id, within the reach of a caller."""

    def __init__(self, store: CommandLookup, clock: Clock, announcements: Announcements) -> None:
        self._store = store
        self._clock = clock
        self._announcements = announcements

    async def find(self, command_id: str, within: Reach) -> CommandWithResponse:
        """Return a command, EXPIRED if it is overdue. Raises CommandNotFound."""
        found = await self._store.get(command_id)
        if found is None or not within.covers(found.command):
            raise not_found(command_id)
        command = found.command
        now = self._clock.now()
        if command.state not in lifecycle.TERMINAL and lifecycle.is_overdue(command.deadline, now):
            self._announcements.announce_swept(await self._store.expire_due(now, EXPIRE_BATCH))
            found = await self._store.get(command_id) or found
        return found


def not_found(command_id: str) -> CommandNotFound:
    """Return the error for a command that does not exist for the caller."""
    return CommandNotFound(f"no such command: {command_id}", command_id=command_id)
