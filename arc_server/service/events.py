"""Events: the lines and the progress that a holder posts while it runs a command."""

from __future__ import annotations

from arc_protocol import lifecycle
from arc_protocol.codec import utc
from arc_protocol.messages.events import EventList, EventsRequest
from arc_server.ports.clock import Clock
from arc_server.ports.events import EventStore
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.ports.records import EventPage
from arc_server.service.announcements import Announcements
from arc_server.service.bounds import bounded, check_wait
from arc_server.service.limits import CommandLimits
from arc_server.service.lookup import not_found
from arc_server.service.waits import Wait


class EventService:
    """Events of commands. `within` is the deployment that the caller's token is bound to."""

    def __init__(
        self,
        *,
        store: EventStore,
        clock: Clock,
        announcements: Announcements,
        limits: CommandLimits,
    ) -> None:
        self._store = store
        self._clock = clock
        self._announcements = announcements
        self._limits = limits

    async def add(
        self, command_id: str, events: EventsRequest, *, within: Reach = EVERYTHING
    ) -> None:
        """Store events and wake the requests that wait for them.

        Raises CommandNotFound, LeaseLost, and InvalidCommand for a time outside the calendar.
        """
        for line in events.lines:
            utc(line.at)
        limits, now = self._limits, self._clock.now()
        await self._store.add_events(
            command_id, events, now, limits.kept_event_lines, limits.quotas, within
        )
        self._announcements.results.wake_for_events(command_id)

    async def read(
        self,
        command_id: str,
        *,
        after: int = 0,
        limit: int | None = None,
        wait_seconds: float = 0,
        wait: Wait | None = None,
        within: Reach = EVERYTHING,
    ) -> EventList:
        """Return the lines after a place; with `wait_seconds`, once there are any, the command has
        ended, or time is up.

        Raises CommandNotFound, InvalidCommand (a limit or a wait out of bounds), and the error that
        `wait` is ended with.
        """
        check_wait(wait_seconds)
        most = bounded("limit", limit, self._limits.list_page, self._limits.max_list_page)
        if wait_seconds == 0 or self._announcements.is_closed:
            return _list_of(await self._look(command_id, after, most, within), after)
        results = self._announcements.results
        with results.waiter(command_id, wait, hears_events=True) as waiter:
            page = await self._look(command_id, after, most, within)
            if not page.lines and page.command.state not in lifecycle.TERMINAL:
                await waiter.sleep(wait_seconds)
                page = await self._look(command_id, after, most, within)
        return _list_of(page, after)

    async def _look(self, command_id: str, after: int, limit: int, within: Reach) -> EventPage:
        page = await self._store.events(command_id, after, limit)
        if page is None or not within.covers(page.command):
            raise not_found(command_id)
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
