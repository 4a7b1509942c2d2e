"""The event sender sends what handlers report while they run.

Events are a courtesy: no work waits for them, events without room are dropped and counted, and a
server that keeps no events is not asked again.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
import structlog

from arc_agent.handlers.events import RunEvents
from arc_agent.host.threads import call_in
from arc_agent.net.connection import NoContact
from arc_agent.net.server import Server
from arc_agent.work.live_config import LiveConfig
from arc_protocol.codec import encode
from arc_protocol.messages.events import EventsRequest, Progress

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_EXTENSION: Final = "events"
_TIMEOUT_SECONDS: Final = 5.0
_MAX_PAUSE_SECONDS: Final = 30.0
_MAX_ENDED: Final = 100
"""The number of ended runs whose last events may wait to be sent."""


class EventSender:
    """Sends the events of all runs. `run` is a loop of the agent's task group."""

    def __init__(self, *, live: LiveConfig, server: Server) -> None:
        self._live = live
        self._server = server
        self._runs: dict[str, RunEvents] = {}
        self._pending = asyncio.Event()
        self._urgent = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def begin(self, command_id: str, lease_id: str, *, is_private: bool = False) -> RunEvents:
        """Return the events of a run; `end` them with it. Those of a private run are not sent."""
        settings = self._live.config.events
        if is_private:
            settings = msgspec.structs.replace(settings, enabled=False)
        events = RunEvents(command_id, lease_id, settings, self._notify)
        self._runs[lease_id] = events
        return events

    def progress_of(self, lease_id: str) -> Progress | None:
        """Return the progress that a run reported last."""
        events = self._runs.get(lease_id)
        return None if events is None else events.latest

    def end(self, events: RunEvents) -> None:
        """Send the last events of a run at once: it has ended."""
        events.is_ended = True
        if events.pending() is None:
            self._runs.pop(events.lease_id, None)
            return
        waiting = [each for each in self._runs.values() if each.is_ended]
        for each in waiting[:-_MAX_ENDED]:
            del self._runs[each.lease_id]
        self.wake()

    def wake(self) -> None:
        """Send everything that waits now."""
        self._urgent.set()
        self._pending.set()

    async def run(self) -> None:
        """Send until cancelled."""
        failures = 0
        while True:
            await self._pending.wait()
            self._pending.clear()
            self._urgent.clear()
            seconds = self._live.config.events.interval_seconds
            if await self._send_all():
                failures = 0
            else:
                failures += 1
                self._pending.set()
                seconds = min(_MAX_PAUSE_SECONDS, seconds * 2.0 ** min(failures, 10))
            try:
                async with asyncio.timeout(seconds):
                    await self._urgent.wait()
            except TimeoutError:
                pass

    def _notify(self) -> None:
        """Note that there is something to send. Safe from any thread."""
        call_in(self._loop, self._pending.set)

    async def _send_all(self) -> bool:
        """Send what there is. Return True if nothing is to be tried again."""
        if self._server.state.is_lost:
            return True  # the agent wakes the loop when contact is back
        is_done = True
        for events in list(self._runs.values()):
            until = events.last_number
            while (request := events.pending()) is not None:
                if not self._server.state.supports(_EXTENSION):
                    events.forget()
                elif not await self._send(events, request):
                    is_done = False
                    break
                if not request.lines or request.lines[-1].number >= until:
                    break  # lines that came meanwhile are for the next round
            if events.is_ended and events.pending() is None:
                self._runs.pop(events.lease_id, None)
        return is_done

    async def _send(self, events: RunEvents, request: EventsRequest) -> bool:
        """Send one request. Return False when it is to be tried again."""
        connection = self._server.connection
        url = connection.url("commands", events.command_id, "events")
        try:
            answer = await connection.call(
                "POST", url, encode(request), timeout_seconds=_TIMEOUT_SECONDS
            )
        except NoContact as error:
            log.debug("events.not_sent", command_id=events.command_id, reason=error.reason)
            return False
        if answer.status == 200:
            events.sent(request)
            return True
        if answer.status in (404, 405) and b"COMMAND_NOT_FOUND" not in answer.body:
            self._server.state.lacks(_EXTENSION)
        events.forget()
        return True
