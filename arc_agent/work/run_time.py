"""RunTime bounds one run: by its lease, the command's deadline and time-outs of its steps.

A step that takes longer is stopped, and so is one whose lease ends for another reason: the sender
cancels, the server gives the command away, the agent drains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from arc_agent.host.clock import MonotonicClock
from arc_agent.host.threads import call_in
from arc_agent.jobs.job import Job
from arc_agent.jobs.lease_table import End, HeldLease
from arc_agent.jobs.outcome import Dropped, Ended, GivenBack
from arc_agent.net.server_state import ServerState
from arc_protocol.lifecycle import budget_seconds

T = TypeVar("T")

STOPPED: Final = Dropped("stopped")
"""The outcome of a run that was stopped. The lease's end says what becomes of the command."""
_RECHECK_SECONDS: Final = 3600.0
"""The event loop's clock stands still while the host sleeps; the agent's clock does not."""


class RunTime:
    """The time of one run. Lives in the main loop."""

    def __init__(
        self, job: Job, held: HeldLease, clock: MonotonicClock, state: ServerState
    ) -> None:
        """Watch the lease from here on."""
        self._job = job
        self._held = held
        self._clock = clock
        self._state = state
        self._woken: asyncio.Future[None] | None = None
        loop = asyncio.get_running_loop()
        held.on_change(lambda: call_in(loop, self._wake))

    @property
    def is_overdue(self) -> bool:
        """Return True if the command's deadline has passed."""
        deadline_at = self._job.deadline_at
        return deadline_at is not None and self._clock() >= deadline_at

    def seconds_left(self, timeout_seconds: float | None, since: float) -> float:
        """Return the seconds that are left for a step; `since` is when its time-out began."""
        now, deadline_at = self._clock(), self._job.deadline_at
        return budget_seconds(
            lease_seconds_left=self._held.ends_at - now,
            deadline_seconds_left=None if deadline_at is None else deadline_at - now,
            timeout_seconds=None if timeout_seconds is None else timeout_seconds + since - now,
            is_renewed=self._state.supports("renewal"),
        )

    async def finishes(self, task: asyncio.Task[Any], timeout_seconds: float | None) -> bool:
        """Wait until a task is done. Return False when it is to be stopped first.

        The lease's `end` says why then. The caller stops the task.
        """
        since = self._clock()
        loop = asyncio.get_running_loop()
        task.add_done_callback(self._wake)
        try:
            while not task.done() and self._held.end is None:
                left = self.seconds_left(timeout_seconds, since)
                if left <= 0:
                    self._held.stop(End.TIMEOUT)
                    break
                self._woken = loop.create_future()
                timer = loop.call_later(min(left, _RECHECK_SECONDS), self._wake)
                try:
                    await self._woken
                finally:
                    timer.cancel()
        except asyncio.CancelledError:
            task.cancel()
            raise
        return self._held.end is None or (task.done() and not task.cancelled())

    async def run(
        self, step: Coroutine[Any, Any, T], timeout_seconds: float | None = None, *, late: str
    ) -> T:
        """Return the result of a step. Raises Ended when it is stopped first.

        A command whose own deadline is not over is given back then, with the reason `late`.
        """
        task = asyncio.create_task(step)
        if await self.finishes(task, timeout_seconds):
            return task.result()
        task.cancel()
        await asyncio.wait({task})
        if self._held.end is End.TIMEOUT and not self.is_overdue:
            raise Ended(GivenBack(late))
        raise Ended(STOPPED)

    def _wake(self, _task: object = None) -> None:
        """Wake `finishes`."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)
