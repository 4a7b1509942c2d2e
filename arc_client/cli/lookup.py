"""Lookups for what a person types: the beginning of an id, a state, the name of a deployment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final, TypeVar

from arc_client.cli.states import is_cancelled
from arc_client.client import Client
from arc_client.errors import ConfigurationError
from arc_client.list_filters import ListFilter
from arc_protocol.errors import (
    ArcError,
    CommandNotFound,
    MethodNotAllowed,
    NotFound,
    OperationNotSupported,
)
from arc_protocol.lifecycle import ShownState
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
    client: Client, which: ListFilter, limit: int | None
) -> list[CommandStatus]:
    """Return at most `limit` commands, newest first. Raises what Client.list does."""
    try:
        return [status async for status in client.list(limit=limit, **which)]
    except OperationNotSupported:  # an older server filters by one state, and not by CANCELLED
        states = which.get("states") or ()
        if limit is None or len(states) != 1:
            raise
        return await _sifted(client, which, ShownState(states[0]), limit)


async def _sifted(
    client: Client, which: ListFilter, state: ShownState, limit: int
) -> list[CommandStatus]:
    """Return the newest commands in a state, from a server that does not tell what was cancelled.

    Raises OperationNotSupported for another field that the server does not know.
    """
    is_sifted = state.stored is State.FAILED
    asked: ListFilter = {**which, "states": None, "state": state.stored}
    found: list[CommandStatus] = []
    async for status in client.list(limit=SCANNED if is_sifted else limit, **asked):
        if not is_sifted or is_cancelled(status) == (state is ShownState.CANCELLED):
            found.append(status)
        if len(found) == limit:
            break
    return found


async def counted(client: Client, which: ListFilter) -> Mapping[ShownState, int]:
    """Return how many commands of a filter are in each state. Raises what Client.list does."""
    others = {name for name, value in which.items() if value is not None}
    if others <= {"deployment", "states"}:
        with suppress(NotFound, MethodNotAllowed):  # a server that does not count
            counts = await client.counts(deployment=which.get("deployment"))
            if counts is not None:
                return counts
    counts = dict.fromkeys(ShownState, 0)
    async for status in client.list(**which):
        shown = ShownState.CANCELLED if is_cancelled(status) else ShownState(status.state.value)
        counts[shown] += 1
    return counts


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
