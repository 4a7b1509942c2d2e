"""Once is the work of `arc-agent run-once`: take what is ready, run it, deliver it, and end."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from arc_agent.net.connection import NoContact, Refused
from arc_runtime.terminal.text import counted

_DONE: Final = 0
_NOT_YET: Final = 1
_NOT_THERE: Final = 3
_NOT_ALLOWED: Final = 4


class Polls(Protocol):
    """The poller, as far as it is needed here."""

    async def once(self, group: asyncio.TaskGroup, seconds: float) -> int:
        """Take on what is ready within so many seconds. Return how many. Raises NoContact."""
        ...


class Runs(Protocol):
    """The runner, as far as it is needed here."""

    async def idle(self) -> None:
        """Wait until no lease is at work."""
        ...


class Once:
    """One round of work, and its result."""

    def __init__(self, wait_seconds: float) -> None:
        """Wait for `wait_seconds` at most for work when none is ready."""
        self._wait_seconds = wait_seconds
        self._taken = 0
        self._error: NoContact | None = None
        self.undelivered = 0
        """The number of responses that wait in the spool at the end."""
        self.refusal: str | None = None
        """Why the agent asked for no work, such as a pause or a full disk."""

    async def run(self, poller: Polls, runner: Runs, group: asyncio.TaskGroup) -> None:
        """Ask once, and wait until all that came has ended."""
        try:
            self._taken = await poller.once(group, self._wait_seconds)
        except NoContact as error:
            self._error = error
        await runner.idle()

    def verdict(self) -> tuple[int, str]:
        """Return the exit code, and a line for the operator."""
        if isinstance(self._error, Refused):
            return _NOT_ALLOWED, self._error.reason
        if self._error is not None:
            return _NOT_THERE, self._error.reason
        if self.refusal is not None:
            return _NOT_YET, f"nothing was asked for: {self.refusal}"
        if self.undelivered:
            return _NOT_YET, (
                f"{counted(self._taken, 'command')} run;"
                f" results that wait in the spool for the server: {self.undelivered}"
            )
        if not self._taken:
            return _DONE, "nothing is ready"
        return _DONE, f"{counted(self._taken, 'command')} run; all results are handed in"
