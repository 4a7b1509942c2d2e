"""Events are what a command's handler logs and reports while it runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

from arc_client.wire.connection import ANSWER_SECONDS, SenderConnection
from arc_client.wire.retry import Intervals, WaitClock, is_transient, pause_after
from arc_protocol.errors import ArcError
from arc_protocol.lifecycle import TERMINAL
from arc_protocol.messages.events import EventList, Progress

_LEAST_SECONDS: Final = 0.2
"""Between two requests: the lines of a handler that logs without pause come in larger batches."""


async def read_events(
    connection: SenderConnection, command_id: str, *, after: int, wait_seconds: int
) -> EventList:
    """Return the events after a place; the server holds the request while there are none."""
    query = {"after": after or None, "waitSeconds": wait_seconds or None}
    url = connection.url("commands", command_id, "events", query=query)
    return await connection.call("GET", url, EventList, limit_seconds=wait_seconds + ANSWER_SECONDS)


async def follow_events(
    connection: SenderConnection, command_id: str, *, poll_seconds: int, clock: WaitClock
) -> AsyncGenerator[EventList]:
    """Yield events until the command has ended and none is left.

    Each batch has lines or a changed progress. A request that fails in passing ends nothing.
    Raises what the server refuses for good.
    """
    after = 0
    progress: Progress | None = None
    intervals = Intervals()
    wait_seconds = 0
    while True:
        asked_at = clock.monotonic()
        try:
            batch = await read_events(
                connection, command_id, after=after, wait_seconds=wait_seconds
            )
        except ArcError as error:
            if not is_transient(error):
                raise
            await clock.sleep(max(intervals.next(), pause_after(error)))
            continue
        intervals.reset()
        wait_seconds = poll_seconds
        if batch.lines or batch.progress != progress:
            after, progress = batch.next, batch.progress
            yield batch
        elif batch.state in TERMINAL:
            return
        await clock.sleep(max(0.0, _LEAST_SECONDS - (clock.monotonic() - asked_at)))
