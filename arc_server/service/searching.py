"""Searches: lists of commands by what they are, when they were, and who sent them."""

from __future__ import annotations

from datetime import datetime

import msgspec

from arc_protocol.errors import InvalidCommand
from arc_protocol.messages.commands import CommandCounts, CommandList
from arc_server.ports.commands import CommandStore
from arc_server.ports.reach import ANY, Reach
from arc_server.ports.records import CommandFilter
from arc_server.service.bounds import bounded, check_deployment
from arc_server.service.cursors import Cursors
from arc_server.service.descriptions import described
from arc_server.service.limits import CommandLimits


class SearchService:
    """The service of those who look for commands. Safe to share between all requests."""

    def __init__(self, *, store: CommandStore, cursors: Cursors, limits: CommandLimits) -> None:
        self._store = store
        self._cursors = cursors
        self._limits = limits

    async def list(
        self, which: CommandFilter, *, cursor: str | None, limit: int | None, within: Reach
    ) -> CommandList:
        """Return a page of commands, newest first, without those that are out of reach.

        A page may be shorter than the limit, or empty, and not be the last.

        Raises InvalidCommand for a bad cursor, limit or span of time, Forbidden.
        """
        which = _within(which, within)
        _check_span("created", which.created_after, which.created_before)
        _check_span("ended", which.ended_after, which.ended_before)
        page = await self._store.list(
            which,
            None if cursor is None else self._cursors.read(which, cursor),
            bounded("limit", limit, self._limits.list_page, self._limits.max_list_page),
        )
        return CommandList(
            commands=[
                described(command, error_code=command.error_code)
                for command in page.commands
                if within.covers(command)
            ],
            cursor=None if page.next_before is None else self._cursors.of(which, page.next_before),
        )

    async def count(self, deployment_id: str | None, *, within: Reach) -> CommandCounts:
        """Return how many commands are in each state, of a deployment or of all within reach.

        Nothing is counted for a caller that is bound to names of commands. Raises Forbidden.
        """
        if deployment_id is not None:
            check_deployment(deployment_id, within)
        if within.commands is not ANY:
            return CommandCounts()
        counts = await self._store.count(deployment_id, within)
        return CommandCounts(counts={state.value: count for state, count in counts.items()})


def _within(which: CommandFilter, within: Reach) -> CommandFilter:
    """Return a filter for the only deployment of a caller, if it has one. Raises Forbidden."""
    if which.deployment_id is not None:
        check_deployment(which.deployment_id, within)
    elif (only := within.deployment()) is not None:
        return msgspec.structs.replace(which, deployment_id=only)
    return which


def _check_span(of: str, after: datetime | None, before: datetime | None) -> None:
    """Raise InvalidCommand for a span of time that ends before it begins."""
    if after is not None and before is not None and after >= before:
        raise InvalidCommand(f"{of}Before: must be later than {of}After", field=f"{of}Before")
