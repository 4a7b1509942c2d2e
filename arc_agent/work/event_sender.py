"""Sending what handlers say while they run.

Never more than a courtesy: nothing waits for it, what there is no room for is dropped and counted,
and a server that keeps no events is not asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from arc_agent.config.sections import EventsSection
from arc_agent.handlers.calling import call_in
from arc_agent.handlers.events import RunEvents
from arc_agent.net.connection import Connection, NoContact
from arc_agent.net.server_state import Contact
from arc_protocol.codec import encode
from arc_protocol.messages.events import EventsRequest, Progress

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_ADDITION: Final = "events"
_TIMEOUT_SECONDS: Final = 5.0
_MAX_PAUSE_SECONDS: Final = 30.0
_MAX_ENDED: Final = 100
"""How many runs that have ended may still wait for their last words to be sent."""


class EventSender:
    """Sends what all runs say. `run` is a loop of the agent's task group."""

    def __init__(
        self, *, connection: Connection, contact: Contact, settings: Callable[[], EventsSection]
    ) -> None:
        self._connection = connection
        self._contact = contact
        self._settings = settings
        self._runs: dict[str, RunEvents] = {}
        self._said = asyncio.Event()
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def begin(self, command_id: str, lease_id: str, *, is_private: bool = False) -> RunEvents:
        """A run begins; `end` it. What a private one says stays here: the server could read it."""
        settings = self._settings()
        if is_private:
            settings = msgspec.structs.replace(settings, enabled=False)
        events = RunEvents(command_id, lease_id, settings, self._wake)
        self._runs[lease_id] = events
        return events

    def progress_of(self, lease_id: str) -> Progress | None:
        """How far a run said it was."""
        events = self._runs.get(lease_id)
        return None if events is None else events.latest

    def end(self, events: RunEvents) -> None:
        """The run has ended; its last words are sent at once."""
        events.is_ended = True
        if events.pending() is None:
            self._runs.pop(events.lease_id, None)
            return
        waiting = [each for each in self._runs.values() if each.is_ended]
        for each in waiting[:-_MAX_ENDED]:
            del self._runs[each.lease_id]
        self._ended.set()
        self._said.set()

    def kick(self) -> None:
        """The server is back: send what has waited."""
        self._ended.set()
        self._said.set()

    async def run(self) -> None:
        """Send for ever; ends when cancelled."""
        failures = 0
        while True:
            await self._said.wait()
            self._said.clear()
            self._ended.clear()
            seconds = self._settings().interval_seconds
            if await self._send_all():
                failures = 0
            else:
                failures += 1
                self._said.set()
                seconds = min(_MAX_PAUSE_SECONDS, seconds * 2.0 ** min(failures, 10))
            try:
                async with asyncio.timeout(seconds):
                    await self._ended.wait()
            except TimeoutError:
                pass

    def _wake(self) -> None:
        """From any thread: there is something to send."""
        call_in(self._loop, self._said.set)

    async def _send_all(self) -> bool:
        """Send what there is; whether all of it could be."""
        if self._contact.is_lost:
            return True  # `kick` comes when it is back
        is_done = True
        for events in list(self._runs.values()):
            until = events.last_number
            while (request := events.pending()) is not None:
                if not self._contact.supports(_ADDITION):
                    events.forget()
                elif not await self._send(events, request):
                    is_done = False
                    break
                if not request.lines or request.lines[-1].number >= until:
                    break  # what was said meanwhile is for the next round
            if events.is_ended and events.pending() is None:
                self._runs.pop(events.lease_id, None)
        return is_done

    async def _send(self, events: RunEvents, request: EventsRequest) -> bool:
        """Send one request; whether to go on, or to try again later."""
        url = self._connection.url("commands", events.command_id, "events")
        try:
            answer = await self._connection.call(
                "POST", url, encode(request), timeout_seconds=_TIMEOUT_SECONDS
            )
        except NoContact as error:
            log.debug("events.not_sent", command_id=events.command_id, reason=error.reason)
            return False
        if answer.status == 200:
            events.sent(request)
            return True
        if answer.status in (404, 405) and b"COMMAND_NOT_FOUND" not in answer.body:
            self._contact.lacks(_ADDITION)
        events.forget()
        return True
