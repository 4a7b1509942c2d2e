"""The subcommands `arc invoke` and `arc wait` send, wait, and show the result."""

# ruff: noqa: ASYNC109  # these time-outs end a wait and nothing else: the command goes on

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Coroutine
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from arc_client.bodies.params import Body
from arc_client.bodies.results import body_of_result
from arc_client.cli.arguments import STDOUT
from arc_client.cli.explain import UNKNOWN_COMMAND, explain
from arc_client.cli.interrupts import Interrupts
from arc_client.cli.lookup import deployment_suggestion, handler_suggestion
from arc_client.cli.output import (
    SHOWN_BYTES,
    UnfitForTerminal,
    show_prompt,
    write_bytes,
    write_result,
)
from arc_client.cli.progress import CommandProgress
from arc_client.client import Client, Command, SendOptions
from arc_client.errors import AgentAbsent, CommandFailed, CommandTimeout
from arc_protocol.errors import ArcError
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import InlineBody
from arc_protocol.messages.commands import CommandStatus
from arc_protocol.messages.waiting import WaitingReason
from arc_runtime.terminal.styles import is_terminal

T = TypeVar("T")

LAST_EVENTS_SECONDS: Final = 0.5
"""The time for which the last events of a command may hold back its result."""


class Addressee(msgspec.Struct, frozen=True):
    """The addressee of a command: a deployment, and the name of a handler there."""

    deployment: str
    command: str


async def invoke(
    client: Client,
    progress: CommandProgress,
    addressee: Addressee,
    params: Body,
    options: SendOptions,
    *,
    timeout: float,
    out: Path | None,
    is_raw: bool = False,
    gives_up: bool = False,
    is_fresh: bool = True,
) -> None:
    """Send a command, wait for its end, and show its result.

    `gives_up`: if it is certain that no agent is there to take the command, cancel it and raise
    AgentAbsent. A command that an earlier sender with this key may have made is not cancelled; the
    key `is_fresh` when no other sender can have used it.

    Raises Interrupted when the person leaves, and what `show_result` and Client.invoke raise.
    """

    async def work() -> CommandStatus:
        sent = await client.send(addressee.deployment, addressee.command, params, **options)
        progress.gives_up = gives_up and (is_fresh or not progress.is_replay)
        waiting = client.wait_for_end(sent.id, timeout=timeout, is_known=True)
        ended = asyncio.ensure_future(_with_events(client, progress, sent.id, waiting))
        absent = asyncio.ensure_future(progress.until_absent())
        try:
            await asyncio.wait((ended, absent), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done() and progress.gives_up:
                likely = await deployment_suggestion(
                    client, addressee.deployment, has_commands=True
                )
                await _give_up(client, progress, sent.id, absent.result(), likely)
            return await ended
        finally:
            for task in (ended, absent):
                task.cancel()
            await asyncio.gather(ended, absent, return_exceptions=True)

    try:
        status = await _attended(client, progress, work())
        await show_result(client, progress, status, out, is_raw=is_raw)
    except (CommandFailed, CommandTimeout) as error:
        likely = await _suggestion(client, addressee, error)
        error.context = {**error.context, "suggestion": likely}
        raise


async def _suggestion(
    client: Client, addressee: Addressee, error: CommandFailed | CommandTimeout
) -> str:
    """Return `. Did you mean …?` if the addressee is likely to be mistyped, else an empty text."""
    if isinstance(error, CommandFailed):
        if error.code != UNKNOWN_COMMAND:
            return ""
        return await handler_suggestion(client, addressee.deployment, addressee.command)
    if error.waiting is None or error.waiting.reason != WaitingReason.NEVER_SEEN:
        return ""
    return await deployment_suggestion(client, addressee.deployment, has_commands=True)


async def wait(
    client: Client,
    progress: CommandProgress,
    command_id: str,
    *,
    timeout: float,
    out: Path | None,
    is_raw: bool = False,
) -> None:
    """Wait for the end of a command, and show its result. Raises as `invoke` does."""

    async def work() -> CommandStatus:
        waiting = client.wait_for_end(command_id, timeout=timeout)
        return await _with_events(client, progress, command_id, waiting)

    status = await _attended(client, progress, work())
    await show_result(client, progress, status, out, is_raw=is_raw)


async def send(
    client: Client,
    progress: CommandProgress,
    addressee: Addressee,
    params: Body,
    options: SendOptions,
) -> Command:
    """Send a command, params and all. Raises as `invoke` does."""
    work = client.send(addressee.deployment, addressee.command, params, **options)
    return await _attended(client, progress, work)


async def _with_events(
    client: Client, progress: CommandProgress, command_id: str, waiting: Awaitable[T]
) -> T:
    """Wait, and show the handler's events meanwhile if a person watches."""
    if not progress.is_shown:
        return await waiting
    events = asyncio.ensure_future(_show_events(client, progress, command_id))
    try:
        ended = await waiting
        await asyncio.wait((events,), timeout=LAST_EVENTS_SECONDS)
        return ended
    finally:
        events.cancel()
        await asyncio.gather(events, return_exceptions=True)


async def _show_events(client: Client, progress: CommandProgress, command_id: str) -> None:
    """Show events if the server keeps them and the token may read them."""
    with suppress(ArcError):
        async with aclosing(client.follow(command_id)) as batches:
            async for batch in batches:
                progress.on_events(batch)


async def _attended(client: Client, progress: CommandProgress, work: Coroutine[Any, Any, T]) -> T:
    """Do the work while a person may press Ctrl-C. Raises Interrupted."""
    offer = CancelOffer(client, progress)
    is_personal = is_terminal(sys.stdin) and is_terminal(sys.stderr)
    interrupts = Interrupts(offer.ask, offer.answered) if is_personal else Interrupts()
    try:
        return await interrupts.around(work)
    finally:
        progress.close()


async def show_result(
    client: Client,
    progress: CommandProgress,
    status: CommandStatus,
    out: Path | None,
    *,
    is_raw: bool = False,
) -> None:
    """Write the result of a command that has ended to a file or to stdout.

    `is_raw`: a JSON string is written to stdout as its text, in a pipe too.

    Raises CommandFailed, CommandExpired, ResultUnreadable, UnfitForTerminal, OSError.
    """
    body = body_of_result(status)
    size = 0 if isinstance(body, InlineBody) else body.size
    if out is not None and out != STDOUT:
        await client.result_to_file(out, status)
    elif out is None and (is_raw or (size is not None and size <= SHOWN_BYTES)):
        data = await client.result_of(status, bytes)
        progress.close()
        write_result(data, is_raw=is_raw)
    elif is_terminal(sys.stdout) and out is None:
        raise UnfitForTerminal
    else:
        async with aclosing(client.result_chunks(status)) as chunks:
            async for chunk in chunks:
                # Blocks while the reader of the pipe does: nothing else is under way.
                write_bytes(chunk)


class CancelOffer:
    """The offer to cancel is the question that Ctrl-C puts at a terminal."""

    def __init__(self, client: Client, progress: CommandProgress) -> None:
        self._client = client
        self._progress = progress

    def ask(self) -> bool:
        """Offer to cancel the command; return False while there is none."""
        command_id = self._progress.command_id
        if command_id is None:
            return False
        self._progress.pause()
        show_prompt(f"Cancel {command_id}? [y/N] (Ctrl-C again: leave it running) ")
        return True

    async def answered(self, line: bytes) -> None:
        """Cancel the command on a yes. The wait goes on either way."""
        command_id = self._progress.command_id
        if command_id is not None and line.strip().lower() in (b"y", b"yes"):
            try:
                status = await self._client.cancel(command_id)
            except ArcError as error:
                self._progress.show_message(f"it cannot be cancelled: {explain(error).what}")
            else:
                if status.state is State.DISPATCHED:
                    self._progress.show_message("cancelling; its agent has yet to stop it")
        self._progress.resume()


async def _give_up(
    client: Client, progress: CommandProgress, command_id: str, reason: str, likely: str
) -> None:
    """Cancel a command that no agent has taken. Raises AgentAbsent, unless one has meanwhile."""
    status = await client.cancel(command_id)
    progress.on_status(status)
    if status.state is State.FAILED and status.dispatched_at is None:
        raise AgentAbsent(reason, command_id=command_id, suggestion=likely)
