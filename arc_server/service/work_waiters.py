"""Requests that wait for work: lease polls, by deployment and target.

A poll arms, looks and sleeps, always in this order, or a wake-up between look and sleep is lost.
One ready command wakes one waiter, first come first served. A waiter that leaves with a wake-up
that it did not use passes it on.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final

from arc_server.ports.records import Holder
from arc_server.service.waits import Wait, finish

WorkKey = tuple[str, str | None]
"""Deployment and target id; None for the deployment's default target, whichever that is."""

MAX_REMEMBERED_CANCELS: Final = 10_000
"""Holders whose cancel requests are kept for their next poll; the rest learn of them by renewal."""


class WorkWaiter:
    """One poll. Use it as a context manager around arm, look, sleep."""

    def __init__(
        self, waiters: WorkWaiters, key: WorkKey, holder: Holder | None, wait: Wait
    ) -> None:
        self._waiters = waiters
        self._wait = wait
        self.key = key
        self.holder = holder
        self.is_dismissed = False
        """The client may have gone unnoticed: the poll ends empty, and nothing is leased for it."""
        self._is_woken = False
        self._sleep: asyncio.Future[None] | None = None
        self._is_owed_a_look = False

    def __enter__(self) -> WorkWaiter:
        self._waiters.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._waiters.remove(self)
        if self._is_owed_a_look:
            self._waiters.wake(*self.key)

    def arm(self) -> None:
        """Prepare for a look: a wake-up from now on ends the sleep that follows it."""
        self._is_woken = False
        self._waiters.add(self)

    def looked(self) -> None:
        """Use up the wake-ups before a look that came to an answer."""
        self._is_owed_a_look = self._is_woken and self._is_owed_a_look

    def wake(self, *, is_for_work: bool) -> None:
        """End the sleep, or the next one if none has begun."""
        self._is_owed_a_look = self._is_owed_a_look or is_for_work
        self._is_woken = True
        if self._sleep is not None:
            finish(self._sleep, None)

    async def sleep(self, seconds: float) -> bool:
        """Sleep until woken; return False when that much time has passed before.

        Raises the error that the wait is ended with.
        """
        if not self._is_woken:
            self._sleep = asyncio.get_running_loop().create_future()
            await self._wait.until(self._sleep, seconds)
            self._sleep = None
        return self._is_woken


class WorkWaiters:
    """All polls that wait in this process. For the event loop only."""

    def __init__(self) -> None:
        self._queues: dict[WorkKey, dict[WorkWaiter, None]] = {}
        self._by_holder: dict[Holder, set[WorkWaiter]] = {}
        self._cancels: dict[Holder, set[str]] = {}

    @property
    def count(self) -> int:
        """Return the number of polls that wait."""
        return sum(map(len, self._queues.values()))

    def waiter(
        self,
        deployment_id: str,
        target_id: str | None,
        holder: Holder | None = None,
        wait: Wait | None = None,
    ) -> WorkWaiter:
        """Return a waiter, which is also woken when a lease of that agent is to be cancelled."""
        return WorkWaiter(self, (deployment_id, target_id), holder, wait or Wait())

    def wake(self, deployment_id: str, target_id: str | None, count: int = 1) -> None:
        """Wake up to `count` waiters of the target, and as many that wait for a default target."""
        self._wake((deployment_id, target_id), count)
        if target_id is not None:
            self._wake((deployment_id, None), count)

    def request_cancel(self, holder: Holder, lease_id: str) -> None:
        """Keep a cancel request for a holder, and wake it."""
        if holder not in self._cancels and len(self._cancels) >= MAX_REMEMBERED_CANCELS:
            del self._cancels[next(iter(self._cancels))]
        self._cancels.setdefault(holder, set()).add(lease_id)
        for waiter in self._by_holder.get(holder, ()):
            waiter.wake(is_for_work=False)

    def take_cancels(self, holder: Holder) -> list[str]:
        """Return the leases that an agent is to cancel, each once."""
        return sorted(self._cancels.pop(holder, ()))

    def dismiss(self, holder: Holder) -> None:
        """End the waits of an agent that gives no sign of life: it polls again if it is there."""
        for waiter in tuple(self._by_holder.get(holder, ())):
            self.remove(waiter)
            waiter.is_dismissed = True
            waiter.wake(is_for_work=False)

    def close(self) -> None:
        """End every wait."""
        for queue in self._queues.values():
            for waiter in queue:
                waiter.wake(is_for_work=False)

    def add(self, waiter: WorkWaiter) -> None:
        """Put a waiter at the end of its queue, unless it is in it."""
        self._queues.setdefault(waiter.key, {})[waiter] = None
        if waiter.holder is not None:
            self._by_holder.setdefault(waiter.holder, set()).add(waiter)

    def remove(self, waiter: WorkWaiter) -> None:
        """Take a waiter out."""
        queue = self._queues.get(waiter.key)
        if queue is not None:
            queue.pop(waiter, None)
            if not queue:
                del self._queues[waiter.key]
        if waiter.holder is not None:
            waiters = self._by_holder.get(waiter.holder, set())
            waiters.discard(waiter)
            if not waiters:
                self._by_holder.pop(waiter.holder, None)

    def _wake(self, key: WorkKey, count: int) -> None:
        queue = self._queues.get(key)
        while queue and count > 0:
            waiter = next(iter(queue))
            del queue[waiter]
            waiter.wake(is_for_work=True)
            count -= 1
        if queue is not None and not queue:
            del self._queues[key]
