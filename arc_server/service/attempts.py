"""Attempts: who held a command, when, and how each lease ended."""

from __future__ import annotations

import msgspec

from arc_protocol import lifecycle
from arc_protocol.messages.base import State
from arc_protocol.messages.commands import AttemptInfo, AttemptList
from arc_server.ports.commands import CommandStore
from arc_server.ports.reach import Reach
from arc_server.ports.records import CommandRecord
from arc_server.service.lookup import Lookup


class AttemptService:
    """The service of those who ask what became of a command. Safe to share between requests."""

    def __init__(self, *, store: CommandStore, lookup: Lookup) -> None:
        self._store = store
        self._lookup = lookup

    async def list(self, command_id: str, *, within: Reach) -> AttemptList:
        """Return the attempts of a command, in order. Raises CommandNotFound."""
        command = (await self._lookup.find(command_id, within)).command
        # The latest lease may have ended meanwhile: it is among the past ones then.
        past = await self._store.past_leases(command_id)
        attempts = [
            AttemptInfo(
                attempt=lease.attempt,
                leased_at=lease.leased_at,
                holder=lease.holder,
                credential=lease.credential,
                ended_at=lease.ended_at,
                outcome=lease.how.value,
            )
            for lease in past
        ]
        latest = _latest(command)
        if latest is None:
            return AttemptList(attempts=attempts)
        last = (past[-1].lease_id, past[-1].leased_at) if past else None
        if last == (command.lease_id, command.dispatched_at):
            if command.state is not State.SUCCEEDED:  # it ended after that lease, by another cause
                return AttemptList(attempts=attempts)
            attempts.pop()  # it lapsed, and its holder responded after all
        return AttemptList(attempts=[*attempts, latest])


def _latest(command: CommandRecord) -> AttemptInfo | None:
    """Return the latest lease of a command; None if it had none."""
    if command.dispatched_at is None:
        return None
    latest = AttemptInfo(
        attempt=command.lease_attempt or command.attempt,
        leased_at=command.dispatched_at,
        holder=command.lease_holder,
        credential=command.lease_credential,
    )
    if command.completed_at is None:
        return latest
    is_cancelled = command.error_code == lifecycle.CANCELLED
    outcome = lifecycle.CANCELLED if is_cancelled else command.state.value
    return msgspec.structs.replace(latest, ended_at=command.completed_at, outcome=outcome)
