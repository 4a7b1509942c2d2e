"""Requests that wait for work: lease polls, by deployment and target.

A poll arms, looks and sleeps, always in this order, or a wake-up between look and sleep is lost.
One ready command wakes one waiter, first come first served. A waiter that leaves with a wake-up
that it did not use passes it on. A command is foretold to the first waiter while its create is on
its way to the disk: create and lease then share a commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from types import TracebackType
from typing import Final

from arc_server.ports.records import Holder
from arc_server.service.waits import Wait, finish

WorkKey = tuple[str, str | None]
"""Deployment and target id; None for the deployment's default target, whichever that is."""

MAX_REMEMBERED_CANCELS: Final = 10_000
"""Holders whose cancel requests are kept for their next poll; the rest learn of them by renewal."""


class Foretold:
    """A command for which a poll was woken when its create began."""

    __slots__ = ("_command_id", "_found", "_waiter")

    def __init__(self, waiter: WorkWaiter) -> None:
        self._waiter = waiter
        self._found: Collection[str] | None = None
        """The leases of the poll's look; None until the look has ended."""
        self._command_id: str | None = None

    @property
    def target_id(self) -> str | None:
        """Return the target that the poll names; None if it waits for the default target."""
        return self._waiter.key[1]

    def is_taken(self, command_id: str) -> bool:
        """Return True if the poll has leased the command, or will look again if it has not.

        Call it once, when the command is committed.
        """
        if self._found is not None:
            return command_id in self._found
        if not self._waiter.take_out():
            return False
        self._command_id = command_id
        return True

    def looked(self, found: Collection[str]) -> bool:
        """End the look. Return True if the command is there by now, and was not found."""
        self._found = found
        return self._command_id is not None and self._command_id not in found


class WorkWaiter:
    """One poll. Use it as a context manager around arm, look, sleep."""

    # Thousands of polls wait at a time, so every byte of one counts.
    __slots__ = (
        "_foretold",
        "_is_owed_a_look",
        "_is_woken",
        "_sleep",
        "_wait",
        "_waiters",
        "holder",
        "is_dismissed",
        "is_looking",
        "key",
    )

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
        self.is_looking = False
        self._foretold: list[Foretold] = []

    def __enter__(self) -> WorkWaiter:
        self._waiters.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._resolve(())
        self._waiters.remove(self)
        if self._is_owed_a_look:
            self._waiters.wake(*self.key)

    def arm(self) -> None:
        """Prepare for a look: a wake-up from now on ends the sleep that follows it."""
        self._is_woken = False
        self.is_looking = True
        self._waiters.add(self)

    def looked(self, found: Collection[str]) -> None:
        """Use up the wake-ups before a look that came to an answer: the commands it leased."""
        self.is_looking = False
        self._is_owed_a_look = self._is_woken and self._is_owed_a_look
        self._resolve(found)

    def foretell(self) -> Foretold:
        """Return what settles whether its next look finds a command whose create begins now."""
        foretold = Foretold(self)
        self._foretold.append(foretold)
        return foretold

    def take_out(self) -> bool:
        """Let no other command wake it; return False if one has."""
        return self._waiters.dequeue(self)

    def _resolve(self, found: Collection[str]) -> None:
        """Settle what was foretold before a look; wake again for what is there and not found."""
        for foretold in self._foretold:
            if foretold.looked(found):
                self.wake(is_for_work=True)
        self._foretold.clear()

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

    def wake_named(self, deployment_id: str, target_id: str) -> None:
        """Wake one waiter that names the target."""
        self._wake((deployment_id, target_id), 1)

    def foretell(self, deployment_id: str, target_id: str | None) -> Foretold | None:
        """Wake a waiter that sleeps for a command whose create begins now, if there is one.

        None stands for the default target.
        """
        key = (deployment_id, target_id)
        waiter = next(iter(self._queues.get(key, ())), None)
        if waiter is None or waiter.is_looking:
            return None
        self._wake(key, 1)
        return waiter.foretell()

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
        self.dequeue(waiter)
        if waiter.holder is not None:
            waiters = self._by_holder.get(waiter.holder, set())
            waiters.discard(waiter)
            if not waiters:
                self._by_holder.pop(waiter.holder, None)

    def dequeue(self, waiter: WorkWaiter) -> bool:
        """Take a waiter out of its queue only; return False if it is not in it."""
        queue = self._queues.get(waiter.key, {})
        if waiter not in queue:
            return False
        del queue[waiter]
        if not queue:
            del self._queues[waiter.key]
        return True

    def _wake(self, key: WorkKey, count: int) -> None:
        queue = self._queues.get(key)
        while queue and count > 0:
            waiter = next(iter(queue))
            del queue[waiter]
            waiter.wake(is_for_work=True)
            count -= 1
        if queue is not None and not queue:
            del self._queues[key]
