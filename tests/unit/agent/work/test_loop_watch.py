"""LoopWatch: a main loop that stands still is reported, with the handler that blocks it."""

from __future__ import annotations

import asyncio
import threading

import structlog

from arc_agent.jobs.lease_table import LeaseTable
from arc_agent.work.loop_watch import LoopWatch
from tests.support.clocks import AgentClock
from tests.support.leases import held, job


async def test_a_loop_that_stands_still_is_told_once_and_its_end_too() -> None:
    clock = AgentClock()
    watch = LoopWatch(asyncio.get_running_loop(), clock, LeaseTable())
    with structlog.testing.capture_logs() as events:
        watch.check(5.0)  # asks; this loop does not run before it is let
        clock.now += 4
        watch.check(5.0)
        assert events == []
        clock.now += 2
        watch.check(5.0)
        watch.check(5.0)
        await asyncio.sleep(0)  # now it answers
        watch.check(5.0)

    assert [event["event"] for event in events] == [
        "handler.blocking",
        "handler.blocking_ended",
    ]
    assert events[0]["seconds"] == 6.0


async def test_the_handler_that_blocks_is_named() -> None:
    clock, leases, of = AgentClock(), LeaseTable(), held(job("spins"))
    leases.add(of)
    watch = LoopWatch(asyncio.get_running_loop(), clock, leases)

    async def spins() -> list[str]:
        def look() -> None:  # as the heartbeat's thread does, while this task holds the loop
            watch.check(5.0)
            clock.now += 6
            watch.check(5.0)

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return []

    of.handler_task = asyncio.create_task(spins())
    with structlog.testing.capture_logs() as events:
        await of.handler_task

    (event,) = [each for each in events if each["event"] == "handler.blocking"]
    assert (event["command"], event["command_id"], event["running"]) == (
        "spins",
        "cmd_1",
        ["spins"],
    )
    assert "threading.py" in event["where"]


async def test_a_loop_that_is_closed_is_not_asked() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    watch = LoopWatch(loop, AgentClock(), LeaseTable())

    watch.check(0.0)
    watch.check(0.0)
