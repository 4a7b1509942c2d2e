"""Requests that wait for a command: for its end, or for the next event or another reason as well.

A request enters, looks and sleeps, always in this order, or a wake-up between look and sleep is
lost.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from types import TracebackType
from typing import Final, NamedTuple

from arc_server.ports.records import CommandWithResponse
from arc_server.service.waits import Wait, finish

MAX_REMEMBERED_LIVE: Final = 10_000
"""Commands that are known to have no result yet; for the rest the database is asked."""


class RememberedCommand(NamedTuple):
    """A command that has not ended, as far as its waiters need to know it."""

    deployment_id: str
    deadline: datetime | None
    created_at: datetime


class ResultWaiter:
    """One request that waits for a command. Use it as a context manager around look and sleep."""

    def __init__(
        self,
        waiters: ResultWaiters,
        command_id: str,
        wait: Wait,
        *,
        hears_events: bool,
        hears_reasons: bool,
    ) -> None:
        self._waiters = waiters
        self._wait = wait
        self.command_id = command_id
        self.hears_events = hears_events
        self.hears_reasons = hears_reasons
        self.deployment_id: str | None = None
        """Set: it hears of the agents of this deployment."""
        self.future: asyncio.Future[CommandWithResponse | None] = (
            asyncio.get_running_loop().create_future()
        )

    def __enter__(self) -> ResultWaiter:
        self._waiters.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._waiters.remove(self)
        self.future.cancel()

    def follow(self, deployment_id: str) -> None:
        """Wake this request, too, when what is known of a deployment's agents changes."""
        self.deployment_id = deployment_id
        self._waiters.add(self)

    async def sleep(self, seconds: float) -> CommandWithResponse | None:
        """Return the command that has ended; None to look again: it has ended, there are events or
        another reason, time is up, or the server stops.

        Raises the error that the wait is ended with.
        """
        return await self._wait.until(self.future, seconds)


class ResultWaiters:
    """All requests of this process that wait for commands. For the event loop only."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[ResultWaiter]] = {}
        self._by_deployment: dict[str, set[ResultWaiter]] = {}
        self._live: dict[str, RememberedCommand] = {}

    @property
    def count(self) -> int:
        """Return the number of requests that wait."""
        return sum(map(len, self._waiters.values()))

    def waiter(
        self,
        command_id: str,
        wait: Wait | None = None,
        *,
        hears_events: bool = False,
        hears_reasons: bool = False,
    ) -> ResultWaiter:
        """Return a waiter for the end of a command; with `hears_events`, for its events too.

        With `hears_reasons` it is woken when the command may wait for another reason, too.
        """
        return ResultWaiter(
            self,
            command_id,
            wait or Wait(),
            hears_events=hears_events,
            hears_reasons=hears_reasons,
        )

    def remember_live(self, command_id: str, command: RememberedCommand) -> None:
        """Remember that a command has no result. Call before it is stored; `wake` forgets it."""
        if len(self._live) >= MAX_REMEMBERED_LIVE:
            del self._live[next(iter(self._live))]
        self._live[command_id] = command

    def live(self, command_id: str) -> RememberedCommand | None:
        """Return what is remembered of a command that has not ended; None when that is not known.

        A waiter that has entered may rely on it: the end that comes from now on wakes the waiter.
        """
        return self._live.get(command_id)

    def wake(self, command_id: str, ended: CommandWithResponse | None = None) -> None:
        """Wake every request that waits for a command that has ended.

        Without `ended` they read it from the database.
        """
        self._live.pop(command_id, None)
        for waiter in tuple(self._waiters.get(command_id, ())):
            self.remove(waiter)
            finish(waiter.future, ended)

    def wake_for_events(self, command_id: str) -> None:
        """Wake the requests that wait for events of a command."""
        for waiter in tuple(self._waiters.get(command_id, ())):
            if waiter.hears_events:
                self.remove(waiter)
                finish(waiter.future, None)

    def wake_for_reasons(self, command_id: str) -> None:
        """Wake the requests that hear for which reason a command waits."""
        if command_id not in self._waiters:
            return
        for waiter in tuple(self._waiters[command_id]):
            if waiter.hears_reasons:
                self.remove(waiter)
                finish(waiter.future, None)

    def wake_for_reasons_in(self, deployment_id: str) -> None:
        """Wake the requests that hear for which reason any command of a deployment waits."""
        for waiter in tuple(self._by_deployment.get(deployment_id, ())):
            self.remove(waiter)
            finish(waiter.future, None)

    def close(self) -> None:
        """End every wait."""
        for waiters in self._waiters.values():
            for waiter in waiters:
                finish(waiter.future, None)

    def add(self, waiter: ResultWaiter) -> None:
        """Put a waiter in."""
        self._waiters.setdefault(waiter.command_id, set()).add(waiter)
        if waiter.deployment_id is not None:
            self._by_deployment.setdefault(waiter.deployment_id, set()).add(waiter)

    def remove(self, waiter: ResultWaiter) -> None:
        """Take a waiter out, unless it is out already."""
        _take_out(self._waiters, waiter.command_id, waiter)
        if waiter.deployment_id is not None:
            _take_out(self._by_deployment, waiter.deployment_id, waiter)


def _take_out(index: dict[str, set[ResultWaiter]], key: str, waiter: ResultWaiter) -> None:
    """Take a waiter out of an index, unless it is out already."""
    waiters = index.get(key)
    if waiters is None:
        return
    waiters.discard(waiter)
    if not waiters:
        del index[key]
