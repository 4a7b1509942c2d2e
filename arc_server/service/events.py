"""What holders say while they run a command, and who listens."""

from __future__ import annotations

from arc_protocol import lifecycle
from arc_protocol.errors import CommandNotFound, InvalidCommand
from arc_protocol.messages.events import EventList, EventsRequest
from arc_server.ports.events import EventStore
from arc_server.ports.records import EventPage
from arc_server.service.commands import check_wait
from arc_server.service.limits import CommandLimits
from arc_server.service.waits import Wait
from arc_server.service.wakeups import Wakeups


class EventService:
    """Lines and progress of commands. `within`: see CommandService."""

    def __init__(self, *, store: EventStore, wakeups: Wakeups, limits: CommandLimits) -> None:
        self._store = store
        self._wakeups = wakeups
        self._limits = limits

    async def add(
        self, command_id: str, events: EventsRequest, *, within: str | None = None
    ) -> None:
        """Record what a holder says, and tell who listens. Raises CommandNotFound, LeaseLost."""
        await self._store.add_events(command_id, events, self._limits.kept_event_lines, within)
        self._wakeups.said(command_id)

    async def read(
        self,
        command_id: str,
        *,
        after: int = 0,
        limit: int | None = None,
        wait_seconds: float = 0,
        wait: Wait | None = None,
        within: str | None = None,
    ) -> EventList:
        """What was said after a place; with `wait_seconds`, as soon as anything is, the command
        ends, or time is up.

        Raises CommandNotFound, InvalidCommand (a limit or a wait out of bounds), and the error that
        `wait` is ended with.
        """
        check_wait(wait_seconds)
        most = self._limits.list_page if limit is None else limit
        if not 1 <= most <= self._limits.max_list_page:
            raise InvalidCommand(
                f"limit: must be from 1 to {self._limits.max_list_page}", field="limit"
            )
        if wait_seconds == 0 or self._wakeups.is_closed:
            return _list_of(await self._look(command_id, after, most, within), after)
        with self._wakeups.for_events(command_id, wait) as waiter:
            page = await self._look(command_id, after, most, within)
            if not page.lines and page.command.state not in lifecycle.TERMINAL:
                await waiter.sleep(wait_seconds)
                page = await self._look(command_id, after, most, within)
        return _list_of(page, after)

    async def _look(self, command_id: str, after: int, limit: int, within: str | None) -> EventPage:
        page = await self._store.events(command_id, after, limit)
        if page is None or (within is not None and page.command.deployment_id != within):
            raise CommandNotFound(f"no such command: {command_id}", command_id=command_id)
        return page


def _list_of(page: EventPage, after: int) -> EventList:
    return EventList(
        lines=list(page.lines),
        next=page.lines[-1].place if page.lines else after,
        state=page.command.state,
        attempt=page.command.attempt,
        dropped=page.dropped,
        progress=page.progress,
    )
