"""What `arc events` writes: a line for each line that was said, or each answer as JSON."""

from __future__ import annotations

from contextlib import aclosing

from arc_client.cli.explain import printable
from arc_client.cli.output import print_line, say, show_json
from arc_client.client import Client
from arc_protocol.messages.events import EventList, Progress


async def show_events(client: Client, command_id: str, *, is_followed: bool, as_json: bool) -> None:
    """Everything that a command's handler has said, and with `is_followed` what it goes on to say.

    Raises what Client.events does.
    """
    if is_followed:
        dropped = 0
        async with aclosing(client.follow(command_id)) as heard:
            async for each in heard:
                dropped = _show(each, dropped, as_json=as_json)
        return
    after, dropped = 0, 0
    while True:
        heard_once = await client.events(command_id, after=after)
        if after and not heard_once.lines:
            return
        dropped = _show(heard_once, dropped, as_json=as_json)
        after = heard_once.next
        if not heard_once.lines:
            return


def _show(heard: EventList, told: int, *, as_json: bool) -> int:
    """Write it; `told` is how many lines are known to be missing, and so is the answer."""
    if as_json:
        show_json(heard)
        return heard.dropped
    if heard.dropped > told:
        say(f"({heard.dropped - told} lines were dropped: there was no room for them)")
    for line in heard.lines:
        at = line.at.astimezone().strftime("%H:%M:%S")
        print_line(f"{at} {line.level:7} {printable(line.message)}")
    if heard.progress is not None:
        say(_describe(heard.progress))
    return heard.dropped


def _describe(progress: Progress) -> str:
    """How far the handler is, in words."""
    of = "" if progress.total is None else f" of {progress.total:g}"
    text = f": {printable(progress.text)}" if progress.text else ""
    return f"{progress.done:g}{of}{text}"
