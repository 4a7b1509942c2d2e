"""The subcommand `arc events` writes a line for each logged line, or each batch as JSON."""

from __future__ import annotations

from contextlib import aclosing

from arc_client.cli.output import print_line, show_json, show_message
from arc_client.client import Client
from arc_protocol.messages.events import EventList, Progress
from arc_runtime.terminal.text import printable
from arc_runtime.terminal.times import local


async def show_events(client: Client, command_id: str, *, is_followed: bool, as_json: bool) -> None:
    """Show the events of a command; with `is_followed` until it has ended.

    Raises what Client.events does.
    """
    dropped = 0
    if is_followed:
        async with aclosing(client.follow(command_id)) as batches:
            async for batch in batches:
                dropped = _show(batch, dropped, as_json=as_json)
        return
    after = 0
    while True:
        batch = await client.events(command_id, after=after)
        if after and not batch.lines:
            return
        dropped = _show(batch, dropped, as_json=as_json)
        after = batch.next
        if not batch.lines:
            return


def _show(batch: EventList, known_dropped: int, *, as_json: bool) -> int:
    """Show a batch, and return how many lines are known to be missing."""
    if as_json:
        show_json(batch)
        return batch.dropped
    if batch.dropped > known_dropped:
        count = batch.dropped - known_dropped
        show_message(f"({count} lines were dropped: there was no room for them)")
    for line in batch.lines:
        at = local(line.at).strftime("%H:%M:%S")
        print_line(printable(f"{at} {line.level:7} {line.message}"))
    if batch.progress is not None:
        show_message(_describe(batch.progress))
    return batch.dropped


def _describe(progress: Progress) -> str:
    """Return a handler's progress in words."""
    of = "" if progress.total is None else f" of {progress.total:g}"
    text = f": {printable(progress.text)}" if progress.text else ""
    return f"{progress.done:g}{of}{text}"
