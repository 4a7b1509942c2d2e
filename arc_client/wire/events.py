"""Hearing what the handler of a command says while it runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

from arc_client.wire.connection import ANSWER_SECONDS, Connection
from arc_client.wire.retry import Clock, Intervals, is_transient, pause_after
from arc_protocol.errors import ArcError
from arc_protocol.lifecycle import TERMINAL
from arc_protocol.messages.events import EventList, Progress

_LEAST_SECONDS: Final = 0.2
"""Between two looks: a handler that talks without end is heard in larger pieces."""


async def look(
    connection: Connection, command_id: str, *, after: int, wait_seconds: int
) -> EventList:
    """What was said after a place, once; held by the server while nothing is."""
    query = {"after": after or None, "waitSeconds": wait_seconds or None}
    url = connection.url("commands", command_id, "events", query=query)
    return await connection.call("GET", url, EventList, limit_seconds=wait_seconds + ANSWER_SECONDS)


async def follow(
    connection: Connection, command_id: str, *, poll_seconds: int, clock: Clock
) -> AsyncGenerator[EventList]:
    """Whatever is said until the command has ended and nothing is left to hear.

    Each has something new: lines, or another progress. A request that fails in passing ends
    nothing. Raises what the server refuses for good.
    """
    after = 0
    progress: Progress | None = None
    intervals = Intervals()
    wait_seconds = 0
    while True:
        asked_at = clock.monotonic()
        try:
            heard = await look(connection, command_id, after=after, wait_seconds=wait_seconds)
        except ArcError as error:
            if not is_transient(error):
                raise
            await clock.sleep(max(intervals.next(), pause_after(error)))
            continue
        intervals.reset()
        wait_seconds = poll_seconds
        if heard.lines or heard.progress != progress:
            after, progress = heard.next, heard.progress
            yield heard
        elif heard.state in TERMINAL:
            return
        await clock.sleep(max(0.0, _LEAST_SECONDS - (clock.monotonic() - asked_at)))
