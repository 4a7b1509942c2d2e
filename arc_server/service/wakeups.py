"""Who waits for work of which target, or for the result of which command.

Waiting is always in this order: arm, look, sleep; or a wake-up between look and sleep is lost. One
ready command wakes one waiter, first come first served; a waiter that leaves with a wake-up that it
did not use passes it on.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from types import TracebackType
from typing import Final, NamedTuple, TypeVar

from arc_server.ports.records import CommandWithResponse, Holder
from arc_server.service.waits import Wait, finish

WorkKey = tuple[str, str | None]
"""Deployment and target id; None for a waiter of whatever the default target is."""

MAX_REMEMBERED_CANCELS: Final = 10_000
"""Holders whose cancel requests are kept for their next poll; the rest hear of them by renewal."""


MAX_REMEMBERED_LIVE: Final = 10_000
"""Commands that are known to have no result yet; of the rest the database is asked."""


class Live(NamedTuple):
    """What is remembered of a command that has not ended."""

    deployment_id: str
    deadline: datetime | None


class WorkWaiter:
    """One waiter for work. Use as a context manager around arm, look, sleep."""

    def __init__(self, wakeups: Wakeups, key: WorkKey, holder: Holder | None, wait: Wait) -> None:
        self._wakeups = wakeups
        self._wait = wait
        self.key = key
        self.holder = holder
        self.is_dismissed = False
        """Nobody may be there any more: nothing is leased for it, its wait ends empty."""
        self._is_woken = False
        self._sleep: asyncio.Future[None] | None = None
        self._is_owed_a_look = False

    def __enter__(self) -> WorkWaiter:
        self._wakeups.add_waiter(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._wakeups.remove_waiter(self)
        if self._is_owed_a_look:
            self._wakeups.work_ready(*self.key)

    def arm(self) -> None:
        """Before every look: a wake-up from now on ends the sleep that follows it."""
        self._is_woken = False
        self._wakeups.add_waiter(self)

    def looked(self) -> None:
        """After a look that came to an answer: earlier wake-ups are used up by it."""
        self._is_owed_a_look = self._is_woken and self._is_owed_a_look

    def wake(self, *, is_for_work: bool) -> None:
        """End the sleep, or the next one if it has not begun."""
        self._is_owed_a_look = self._is_owed_a_look or is_for_work
        self._is_woken = True
        if self._sleep is not None:
            finish(self._sleep, None)

    async def sleep(self, seconds: float) -> bool:
        """Sleep until woken (True) or until that much time has passed (False).

        Raises the error that the wait is ended with.
        """
        if not self._is_woken:
            self._sleep = asyncio.get_running_loop().create_future()
            await self._wait.until(self._sleep, seconds)
            self._sleep = None
        return self._is_woken


class ResultWaiter:
    """One waiter for a result. Use as a context manager around look and sleep."""

    def __init__(self, wakeups: Wakeups, command_id: str, wait: Wait) -> None:
        self._wakeups = wakeups
        self._wait = wait
        self.command_id = command_id
        self.future: asyncio.Future[CommandWithResponse | None] = (
            asyncio.get_running_loop().create_future()
        )

    def __enter__(self) -> ResultWaiter:
        self._wakeups.add_result_waiter(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._wakeups.remove_result_waiter(self)
        self.future.cancel()

    async def sleep(self, seconds: float) -> CommandWithResponse | None:
        """Return the terminal command; None to look again: it ended, time is up, or the server
        stops.

        Raises the error that the wait is ended with.
        """
        return await self._wait.until(self.future, seconds)


class EventWaiter(ResultWaiter):
    """The same, for whoever also wants to hear what its holder says meanwhile."""

    def __enter__(self) -> EventWaiter:
        super().__enter__()
        self._wakeups.add_event_waiter(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._wakeups.remove_event_waiter(self)
        super().__exit__(kind, error, trace)


W = TypeVar("W", bound=ResultWaiter)


class Wakeups:
    """All waiters of this process. Not thread-safe: for the event loop only."""

    def __init__(self) -> None:
        self._work: dict[WorkKey, dict[WorkWaiter, None]] = {}
        self._holders: dict[Holder, set[WorkWaiter]] = {}
        self._results: dict[str, set[ResultWaiter]] = {}
        self._listeners: dict[str, set[EventWaiter]] = {}
        self._cancels: dict[Holder, set[str]] = {}
        self._push = asyncio.Event()
        self._live: dict[str, Live] = {}
        self.is_closed = False

    # waiting

    def for_work(
        self,
        deployment_id: str,
        target_id: str | None,
        agent_id: str | None = None,
        wait: Wait | None = None,
    ) -> WorkWaiter:
        """A waiter for work; also woken when a lease of that agent is to be cancelled."""
        holder = None if agent_id is None else (deployment_id, agent_id)
        return WorkWaiter(self, (deployment_id, target_id), holder, wait or Wait())

    def for_result(self, command_id: str, wait: Wait | None = None) -> ResultWaiter:
        """A waiter for the end of a command."""
        return ResultWaiter(self, command_id, wait or Wait())

    def for_events(self, command_id: str, wait: Wait | None = None) -> EventWaiter:
        """A waiter for what the holder of a command says, and for its end."""
        return EventWaiter(self, command_id, wait or Wait())

    def began(self, command_id: str, deployment_id: str, deadline: datetime | None) -> None:
        """Call before a command is stored: until `finished` it is known to have no result."""
        if len(self._live) >= MAX_REMEMBERED_LIVE:
            del self._live[next(iter(self._live))]
        self._live[command_id] = Live(deployment_id, deadline)

    def live(self, command_id: str) -> Live | None:
        """A command that was stored here and has not ended; None when that is not known.

        Right for who waits already (`for_result`): the end that comes from now on wakes it.
        """
        return self._live.get(command_id)

    def take_cancels(self, deployment_id: str, agent_id: str) -> list[str]:
        """The lease ids that an agent is to cancel, each told once this way."""
        return sorted(self._cancels.pop((deployment_id, agent_id), ()))

    async def for_push(self, seconds: float | None) -> None:
        """Until a push is due or that much time has passed."""
        try:
            async with asyncio.timeout(seconds):
                await self._push.wait()
        except TimeoutError:
            return
        self._push.clear()

    # waking

    def work_ready(self, deployment_id: str, target_id: str | None, count: int = 1) -> None:
        """Wake up to `count` waiters of the target, and as many that wait for a default target."""
        self._wake((deployment_id, target_id), count)
        if target_id is not None:
            self._wake((deployment_id, None), count)

    def push_ready(self) -> None:
        """Wake the dispatcher's loop."""
        self._push.set()

    def finished(self, command_id: str, ended: CommandWithResponse | None = None) -> None:
        """Tell everybody who waits for this command; without `ended`, to look for themselves."""
        self._live.pop(command_id, None)
        for waiter in self._results.pop(command_id, ()):
            finish(waiter.future, ended)

    def said(self, command_id: str) -> None:
        """Tell who listens to this command to look for what is new."""
        for waiter in self._listeners.pop(command_id, ()):
            finish(waiter.future, None)

    def cancel_requested(self, deployment_id: str, agent_id: str, lease_id: str) -> None:
        """Tell a holder that one of its leases is to be cancelled."""
        holder = (deployment_id, agent_id)
        if holder not in self._cancels and len(self._cancels) >= MAX_REMEMBERED_CANCELS:
            del self._cancels[next(iter(self._cancels))]
        self._cancels.setdefault(holder, set()).add(lease_id)
        for waiter in self._holders.get(holder, ()):
            waiter.wake(is_for_work=False)

    def dismiss(self, deployment_id: str, agent_id: str) -> None:
        """End the waits of an agent that is not heard of: it asks again if it is there."""
        for waiter in tuple(self._holders.get((deployment_id, agent_id), ())):
            self.remove_waiter(waiter)
            waiter.is_dismissed = True
            waiter.wake(is_for_work=False)

    def close(self) -> None:
        """The server stops: end every wait, and let nobody wait again."""
        self.is_closed = True
        self._push.set()
        for waiters in self._work.values():
            for waiter in waiters:
                waiter.wake(is_for_work=False)
        for results in self._results.values():
            for result in results:
                finish(result.future, None)

    @property
    def waiting_for_work(self) -> int:
        """How many waiters for work there are."""
        return sum(map(len, self._work.values()))

    @property
    def waiting_for_results(self) -> int:
        """How many waiters for results there are."""
        return sum(map(len, self._results.values()))

    # for the waiters themselves

    def add_waiter(self, waiter: WorkWaiter) -> None:
        """Put a waiter at the end of its queue unless it is in it."""
        self._work.setdefault(waiter.key, {})[waiter] = None
        if waiter.holder is not None:
            self._holders.setdefault(waiter.holder, set()).add(waiter)

    def remove_waiter(self, waiter: WorkWaiter) -> None:
        """Take a waiter out."""
        queue = self._work.get(waiter.key)
        if queue is not None:
            queue.pop(waiter, None)
            if not queue:
                del self._work[waiter.key]
        if waiter.holder is not None:
            waiters = self._holders.get(waiter.holder, set())
            waiters.discard(waiter)
            if not waiters:
                self._holders.pop(waiter.holder, None)

    def add_result_waiter(self, waiter: ResultWaiter) -> None:
        """Put a waiter in."""
        self._results.setdefault(waiter.command_id, set()).add(waiter)

    def remove_result_waiter(self, waiter: ResultWaiter) -> None:
        """Take a waiter out, if it has not been told."""
        _take_out(self._results, waiter)

    def add_event_waiter(self, waiter: EventWaiter) -> None:
        """Put a listener in."""
        self._listeners.setdefault(waiter.command_id, set()).add(waiter)

    def remove_event_waiter(self, waiter: EventWaiter) -> None:
        """Take a listener out, if it has not been told."""
        _take_out(self._listeners, waiter)

    def _wake(self, key: WorkKey, count: int) -> None:
        queue = self._work.get(key)
        while queue and count > 0:
            waiter = next(iter(queue))
            del queue[waiter]
            waiter.wake(is_for_work=True)
            count -= 1
        if queue is not None and not queue:
            del self._work[key]


def _take_out(waiters: dict[str, set[W]], waiter: W) -> None:
    """Take a waiter out of those of its command; what is empty then goes too."""
    of_command = waiters.get(waiter.command_id)
    if of_command is None:
        return
    of_command.discard(waiter)
    if not of_command:
        del waiters[waiter.command_id]
