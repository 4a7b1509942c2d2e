"""Lists in the model: every command looked at, sorted, cut."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from arc_protocol.lifecycle import CANCELLED, ShownState
from arc_protocol.messages.base import State
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.ports.records import CommandFilter, CommandPage, CommandRecord, ListMark
from arc_server.store.engine.rows import micros
from tests.model.records import StoredCommand
from tests.model.state import ModelState


class ModelSearch(ModelState):
    """Finds commands."""

    async def list(self, which: CommandFilter, before: ListMark | None, limit: int) -> CommandPage:
        """See Store."""
        self._check_open()
        found = sorted(
            (
                (_mark(stored, which), stored.command)
                for stored in self._commands.values()
                if self._matches(stored, which)
            ),
            key=lambda each: each[0],
            reverse=True,
        )
        found = [each for each in found if before is None or each[0] < before]
        page = found[:limit]
        return CommandPage(
            commands=[command for _, command in page],
            next_before=page[-1][0] if page and len(found) > limit else None,
        )

    async def count(
        self, deployment_id: str | None, within: Reach = EVERYTHING
    ) -> Mapping[ShownState, int]:
        """See Store."""
        self._check_open()
        counts = dict.fromkeys(ShownState, 0)
        for stored in self._commands.values():
            command = stored.command
            is_named = deployment_id in (None, command.deployment_id)
            if is_named and within.allows_deployment(command.deployment_id):
                counts[_shown(command)] += 1
        return counts

    def _matches(self, stored: StoredCommand, which: CommandFilter) -> bool:
        command = stored.command
        keys = {
            name[2]
            for name, keys in self._keys.items()
            for key in keys
            if key.command_id == command.command_id
        }
        return (
            which.deployment_id in (None, command.deployment_id)
            and which.state in (None, command.state)
            and (which.states is None or _shown(command) in which.states)
            and which.command in (None, command.command)
            and which.target_id in (None, command.target.resource_id)
            and (which.tags or {}).items() <= (command.tags or {}).items()
            and which.created_by in (None, command.created_by)
            and (which.idempotency_key is None or which.idempotency_key in keys)
            and _is_within(command.created_at, which.created_after, which.created_before)
            and _is_within(command.completed_at, which.ended_after, which.ended_before)
        )


def _mark(stored: StoredCommand, which: CommandFilter) -> ListMark:
    command = stored.command
    has_end = which.ended_after is not None or which.ended_before is not None
    at = command.completed_at if has_end and which.idempotency_key is None else command.created_at
    return micros(at or command.created_at), stored.seq


def _is_within(at: datetime | None, after: datetime | None, before: datetime | None) -> bool:
    if after is None and before is None:
        return True
    return at is not None and (after is None or at >= after) and (before is None or at < before)


def _shown(command: CommandRecord) -> ShownState:
    if command.state is State.FAILED and command.error_code == CANCELLED:
        return ShownState.CANCELLED
    return ShownState(command.state.value)
