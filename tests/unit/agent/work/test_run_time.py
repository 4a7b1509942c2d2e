"""RunTime: what bounds a step of a run."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import pytest

from arc_agent.jobs.lease_table import End, HeldLease
from arc_agent.jobs.outcome import Ended, GivenBack
from arc_agent.net.server_state import ServerState
from arc_agent.work.run_time import STOPPED, RunTime
from tests.support.clocks import AgentClock
from tests.support.leases import held, job
from tests.support.waiting import settle


class Timed:
    """A run whose clock a test moves."""

    def __init__(self, *, renews: bool = True, **of_job: Any) -> None:
        self.clock = AgentClock()
        state = ServerState(self.clock)
        if not renews:
            state.lacks("renewal")
        self.job = job(**of_job)
        self.held: HeldLease = held(self.job)
        self.time = RunTime(self.job, self.held, self.clock, state)


async def forever() -> None:
    await asyncio.Event().wait()


async def test_a_lease_that_is_renewed_bounds_nothing() -> None:
    timed = Timed(seconds=60)

    assert timed.time.seconds_left(None, 0) == math.inf
    assert not timed.time.is_overdue


async def test_a_lease_that_is_not_renewed_bounds_the_run() -> None:
    timed = Timed(renews=False, seconds=60)
    timed.clock.now += 20

    assert timed.time.seconds_left(None, 0) <= 40


async def test_the_nearest_bound_counts() -> None:
    timed = Timed(deadline_at=1030.0)
    timed.clock.now += 10

    assert timed.time.seconds_left(None, 0) <= 20
    assert timed.time.seconds_left(5, since=1008.0) <= 3
    timed.clock.now += 20
    assert timed.time.is_overdue


async def test_a_step_that_is_done_in_time_gives_its_result() -> None:
    async def step() -> int:
        await asyncio.sleep(0)
        return 7

    assert await Timed().time.run(step(), 60, late="late") == 7


async def test_a_step_that_raises_raises() -> None:
    async def step() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await Timed().time.run(step(), late="late")


async def test_a_step_that_takes_too_long_gives_the_command_back() -> None:
    timed = Timed()
    running = asyncio.create_task(timed.time.run(forever(), 30, late="still_waiting"))
    await settle()

    timed.clock.now += 30
    timed.held.changed()

    with pytest.raises(Ended) as caught:
        await running
    assert caught.value.outcome == GivenBack("still_waiting")
    assert timed.held.end is End.TIMEOUT


async def test_a_time_that_is_over_before_the_step_starts_it_not() -> None:
    timed = Timed(deadline_at=999.0)
    begun: list[None] = []

    async def step() -> None:
        begun.append(None)

    with pytest.raises(Ended) as caught:
        await timed.time.run(step(), late="late")

    assert caught.value.outcome == STOPPED, "its deadline is over: it is not given back"
    assert timed.held.end is End.TIMEOUT
    assert begun == []


@pytest.mark.parametrize("end", [End.CANCELLED, End.LOST, End.DRAIN, End.HALTED])
async def test_a_lease_that_ends_stops_the_step_from_any_thread(end: End) -> None:
    timed = Timed()
    running = asyncio.create_task(timed.time.run(forever(), late="late"))
    await settle()

    thread = threading.Thread(target=timed.held.stop, args=(end,))
    thread.start()
    with pytest.raises(Ended) as caught:
        await running

    thread.join()
    assert caught.value.outcome == STOPPED


async def test_a_result_that_is_there_counts_though_the_lease_has_ended() -> None:
    timed = Timed()
    task = asyncio.create_task(asyncio.sleep(0, "done"))
    await task
    timed.held.stop(End.CANCELLED)

    assert await timed.time.finishes(task, None)


async def test_bounds_that_change_are_looked_at_again() -> None:
    timed = Timed(seconds=60)
    running = asyncio.create_task(timed.time.run(forever(), late="late"))
    await settle()
    timed.clock.now += 100
    timed.time._state.lacks("renewal")  # pyright: ignore[reportPrivateUsage]
    timed.held.changed()

    with pytest.raises(Ended) as caught:
        await running
    assert caught.value.outcome == GivenBack("late")


async def test_a_cancelled_run_leaves_no_step_behind() -> None:
    timed = Timed()
    step = asyncio.create_task(forever())
    waiting = asyncio.create_task(timed.time.finishes(step, None))
    await settle()

    waiting.cancel()
    await asyncio.wait({waiting, step})

    assert step.cancelled()
