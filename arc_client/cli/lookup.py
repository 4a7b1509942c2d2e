"""Lookups for what a person types: the beginning of an id, a state, the name of a deployment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from arc_client.cli.states import ShownState, is_cancelled
from arc_client.client import Client
from arc_client.errors import ConfigurationError
from arc_protocol.errors import ArcError, CommandNotFound
from arc_protocol.messages.base import State
from arc_protocol.messages.commands import CommandStatus
from arc_runtime.terminal.prefixes import PrefixError, id_of
from arc_runtime.terminal.suggestions import suggestion

T = TypeVar("T")

SEARCHED: Final = 1_000
"""The beginning of an id is looked for among so many of the newest commands."""
SCANNED: Final = 10_000
"""Cancelled commands are looked for among so many of the newest that failed."""


class AmbiguousId(ConfigurationError):
    """The beginning of an id that several commands have."""

    code = "AMBIGUOUS_ID"


async def newest_commands(
    client: Client,
    *,
    deployment: str | None,
    state: ShownState | None,
    command: str | None,
    limit: int,
) -> list[CommandStatus]:
    """Return at most `limit` commands, newest first. Raises what Client.list does."""
    stored = State.FAILED if state is ShownState.CANCELLED else state and State(state.value)
    is_sifted = stored is State.FAILED
    listed = client.list(
        deployment=deployment,
        state=stored,
        command=command,
        limit=SCANNED if is_sifted else limit,
    )
    found: list[CommandStatus] = []
    async for status in listed:
        if not is_sifted or is_cancelled(status) == (state is ShownState.CANCELLED):
            found.append(status)
        if len(found) == limit:
            break
    return found


async def with_whole_id(client: Client, given: str, work: Callable[[str], Awaitable[T]]) -> T:
    """Do some work with a command that is named by its id or by the beginning of it.

    Raises CommandNotFound, AmbiguousId, and what the work does.
    """
    try:
        return await work(given)
    except CommandNotFound as error:
        return await work(await _whole_id(client, given, error))


async def _whole_id(client: Client, given: str, error: CommandNotFound) -> str:
    """Return the id that begins as given. Raises the error, or AmbiguousId."""
    try:
        ids = [status.command_id async for status in client.list(limit=SEARCHED)]
    except ArcError:  # a server without lists
        raise error from None
    try:
        return id_of(given, ids, "command")
    except PrefixError as refused:
        if refused.matches:
            raise AmbiguousId(str(refused)) from None
        raise error from None


async def handler_suggestion(client: Client, deployment: str, command: str) -> str:
    """Return `. Did you mean reports.daily?` for a handler of a deployment, or an empty text."""
    try:
        agents = await client.agents(deployment=deployment)
    except ArcError:  # a server without that list, or a token without that right
        return ""
    return suggestion(command, {handler.name for agent in agents for handler in agent.handlers})


async def deployment_suggestion(
    client: Client, deployment: str, *, has_commands: bool = False
) -> str:
    """Return `. Did you mean acme-eu-1?` for a deployment that is not known; else an empty text.

    `has_commands`: commands were sent to it, which does not make it known.
    """
    known: set[str] = set()
    try:
        found = await client.roll_call(None)
        known |= {each.deployment_id for each in (*found.agents, *(found.receivers or ()))}
        if deployment not in known and not has_commands:
            newest = [status.deployment_id async for status in client.list(limit=SEARCHED // 10)]
            known |= {each for each in newest if each is not None}
    except ArcError:  # a server without lists, or a token without that right
        pass
    return "" if deployment in known else suggestion(deployment, known)
