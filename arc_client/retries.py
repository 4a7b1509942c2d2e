"""Retries of many commands: each once, however often the retry itself is begun anew."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Final, Protocol

import msgspec

from arc_protocol.errors import ArcError, BadRequest, Conflict, NotFound
from arc_protocol.messages.base import State

_KEY: Final = "retry-of-"


class RunAgain(Protocol):
    """A command that was sent again: a Command of the client."""

    @property
    def id(self) -> str: ...

    @property
    def state(self) -> State: ...

    @property
    def is_new(self) -> bool: ...


class Retried(msgspec.Struct, frozen=True):
    """A command that was to run again: `command` runs in its place, unless there is an `error`."""

    command_id: str
    """Of the old one."""
    command: RunAgain | None = None
    error: ArcError | None = None

    @property
    def is_new(self) -> bool:
        """Return True unless an earlier retry of the old command has made the new one."""
        return self.command is not None and self.command.is_new


def retry_key(command_id: str) -> str:
    """Return the idempotency key of the one retry of a command by a filter."""
    return f"{_KEY}{command_id}"


async def retry_each(
    retry: Callable[[str, str], Awaitable[RunAgain]], command_ids: Iterable[str]
) -> AsyncGenerator[Retried]:
    """Run commands again, one after the other, and yield what became of each.

    `retry` takes the id of a command and an idempotency key. Raises the errors that concern all of
    them: no answer, no right.
    """
    for command_id in command_ids:
        try:
            again = await retry(command_id, retry_key(command_id))
        except (BadRequest, Conflict, NotFound) as error:
            yield Retried(command_id, error=error)
        else:
            yield Retried(command_id, again)
