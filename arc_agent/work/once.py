"""`arc-agent run-once`: take what is ready, run it, hand it in, and end."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final, Protocol

from arc_agent.net.connection import NoContact, Refused
from arc_agent.work.live_config import LiveConfig

_DONE: Final = 0
_NOT_YET: Final = 1
_NOT_THERE: Final = 3
_NOT_ALLOWED: Final = 4


class Work(Protocol):
    """What is asked of the poller."""

    async def once(self, group: asyncio.TaskGroup, seconds: float) -> int:
        """Take on what is ready within so many seconds; how many that were. Raises NoContact."""
        ...


class Runs(Protocol):
    """What is asked of the runner."""

    async def idle(self) -> None:
        """Until nothing runs."""
        ...


class Once:
    """One such run, and what came of it."""

    def __init__(self, wait_seconds: float) -> None:
        """`wait_seconds`: how long to wait for something when nothing is ready."""
        self._wait_seconds = wait_seconds
        self._taken = 0
        self._error: NoContact | None = None
        self.left = 0
        """How many results the server has not taken; they wait in the spool."""
        self.refusal: str | None = None
        """Why nothing was asked for: a pause, a full disk."""

    async def run(self, poller: Work, runner: Runs, group: asyncio.TaskGroup) -> None:
        """Ask once, and wait until what came has ended."""
        try:
            self._taken = await poller.once(group, self._wait_seconds)
        except NoContact as error:
            self._error = error
        await runner.idle()

    def verdict(self) -> tuple[int, str]:
        """The exit code, and a line that says what was done."""
        if isinstance(self._error, Refused):
            return _NOT_ALLOWED, self._error.reason
        if self._error is not None:
            return _NOT_THERE, self._error.reason
        if self.refusal is not None:
            return _NOT_YET, f"nothing was asked for: {self.refusal}"
        if self.left:
            return _NOT_YET, (
                f"{self._taken} commands run; {self.left} results wait in the spool for the server"
            )
        if not self._taken:
            return _DONE, "nothing is ready"
        return _DONE, f"{self._taken} commands run, their results are handed in"


def run(live: LiveConfig, wait_seconds: float) -> int:
    """Live just long enough; the exit code. Raises what an agent's start raises."""
    from arc_agent.agent import Agent

    once = Once(wait_seconds)
    agent = Agent(live, once=once)

    async def live_and_end() -> int:
        code = await agent.run()
        said_code, text = once.verdict()
        is_bad = bool(code or said_code)
        stream = sys.stderr if is_bad else sys.stdout
        stream.write(f"arc-agent: {text}\n" if is_bad else f"{text}\n")
        stream.flush()
        if agent.has_abandoned:
            os._exit(code or said_code)  # what ignores its end would keep the process alive
        return code or said_code

    return asyncio.run(live_and_end())
