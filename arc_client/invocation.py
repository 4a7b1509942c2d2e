"""What `arc invoke` and `arc wait` do: send, wait while a person watches, show the result."""

# ruff: noqa: ASYNC109  # these time-outs end a wait and nothing else: the command goes on

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Coroutine
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from arc_client.arguments import STDOUT
from arc_client.client import Client, Command, SendOptions
from arc_client.explain import agent_hint, explain
from arc_client.interrupts import Interrupts
from arc_client.params import Body
from arc_client.progress import Journey
from arc_client.results import body_of_result
from arc_client.screen import SHOWN_BYTES, NotShown, is_shown_on, prompt, write_bytes, write_result
from arc_protocol.errors import ArcError
from arc_protocol.types import CommandStatus, InlineBody, State

T = TypeVar("T")

HINT_SECONDS: Final = 3.0
"""After so long without an agent taking it, a person may wonder why."""


LAST_WORDS_SECONDS: Final = 0.5
"""How long the end of a command may be told before all that its handler said is."""


class Addressee(msgspec.Struct, frozen=True):
    """Whom a command is for, as far as a hint needs it."""

    deployment: str
    command: str
    target: str | None


async def invoke(
    client: Client,
    journey: Journey,
    addressee: Addressee,
    params: Body,
    options: SendOptions,
    *,
    timeout: float,
    out: Path | None,
) -> None:
    """Send a command, wait for its end, and show its result.

    Raises Interrupted when the person leaves, and what `show_result` and Client.invoke raise.
    """

    async def work() -> CommandStatus:
        sent = await client.send(addressee.deployment, addressee.command, params, **options)
        waiting = client.wait_for_end(sent.id, timeout=timeout, is_known=True)
        return await _while_heard(client, journey, sent.id, waiting)

    hint = asyncio.ensure_future(hint_at_absence(client, journey, addressee))
    try:
        status = await _attended(client, journey, work())
    finally:
        hint.cancel()
        await asyncio.gather(hint, return_exceptions=True)
    await show_result(client, journey, status, out)


async def wait(
    client: Client, journey: Journey, command_id: str, *, timeout: float, out: Path | None
) -> None:
    """Wait for the end of a command, and show its result. Raises as `invoke` does."""

    async def work() -> CommandStatus:
        waiting = client.wait_for_end(command_id, timeout=timeout)
        return await _while_heard(client, journey, command_id, waiting)

    status = await _attended(client, journey, work())
    await show_result(client, journey, status, out)


async def send(
    client: Client, journey: Journey, addressee: Addressee, params: Body, options: SendOptions
) -> Command:
    """Send a command, params and all. Raises as `invoke` does."""
    work = client.send(addressee.deployment, addressee.command, params, **options)
    return await _attended(client, journey, work)


async def _while_heard(
    client: Client, journey: Journey, command_id: str, waiting: Awaitable[T]
) -> T:
    """Wait, and let a person who watches hear meanwhile what the handler says."""
    if not journey.is_shown:
        return await waiting
    listening = asyncio.ensure_future(_listen(client, journey, command_id))
    try:
        ended = await waiting
        await asyncio.wait((listening,), timeout=LAST_WORDS_SECONDS)
        return ended
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def _listen(client: Client, journey: Journey, command_id: str) -> None:
    """Show what is said, if it can be heard: not on every server, nor with every token."""
    with suppress(ArcError):
        async with aclosing(client.follow(command_id)) as heard:
            async for each in heard:
                journey.heard(each)


async def _attended(client: Client, journey: Journey, work: Coroutine[Any, Any, T]) -> T:
    """Do it, with a person who may press Ctrl-C."""
    offer = CancelOffer(client, journey)
    is_personal = is_shown_on(sys.stdin) and is_shown_on(sys.stderr)
    interrupts = Interrupts(offer.ask, offer.answered) if is_personal else Interrupts()
    try:
        return await interrupts.around(work)
    finally:
        journey.close()


async def show_result(
    client: Client, journey: Journey, status: CommandStatus, out: Path | None
) -> None:
    """Write the result of a command that has ended to a file or to stdout.

    Raises CommandFailed, CommandExpired, ResultUnreadable; NotShown for what is not fit for a
    terminal; OSError.
    """
    body = body_of_result(status)
    size = 0 if isinstance(body, InlineBody) else body.size
    if out is not None and out != STDOUT:
        await client.result_to_file(out, status)
    elif out is None and size is not None and size <= SHOWN_BYTES:
        data = await client.result_of(status, bytes)
        journey.close()
        write_result(data)
    elif is_shown_on(sys.stdout) and out is None:
        raise NotShown
    else:
        async with aclosing(client.result_chunks(status)) as chunks:
            async for chunk in chunks:
                # Blocks while the reader of the pipe does; there is nothing else to do.
                write_bytes(chunk)


class CancelOffer:
    """The question that Ctrl-C puts at a terminal, and what follows."""

    def __init__(self, client: Client, journey: Journey) -> None:
        self._client = client
        self._journey = journey

    def ask(self) -> bool:
        """Offer to cancel; False while there is no command yet."""
        command_id = self._journey.command_id
        if command_id is None:
            return False
        self._journey.pause()
        prompt(f"Cancel {command_id}? [y/N] (Ctrl-C again: leave, and let it run) ")
        return True

    async def answered(self, line: bytes) -> None:
        """Cancel, or not; the wait goes on either way, for the end that this brings."""
        command_id = self._journey.command_id
        if command_id is not None and line.strip().lower() in (b"y", b"yes"):
            try:
                status = await self._client.cancel(command_id)
            except ArcError as error:
                self._journey.note(f"it cannot be cancelled: {explain(error).what}")
            else:
                if status.state is State.DISPATCHED:
                    self._journey.note("cancelling; its agent has yet to stop it")
        self._journey.resume()


async def hint_at_absence(
    client: Client,
    journey: Journey,
    addressee: Addressee,
) -> None:
    """Say why nobody takes the command, if that can be known."""
    await asyncio.sleep(HINT_SECONDS)
    command_id = journey.command_id
    if command_id is None or journey.state is State.PENDING_UPLOAD:
        return
    try:
        journey.looked(await client.status(command_id))
        if journey.state is not State.PENDING:
            return
        agents = await client.agents()
    except ArcError:  # a server without that route, or a token without that right
        return
    hint = agent_hint(
        agents, addressee.deployment, addressee.command, addressee.target, datetime.now(UTC)
    )
    if hint is not None:
        journey.note(f"still waiting: {hint}")
