"""Leases while handlers run: renewed, lost, cancelled, lapsed."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from arc_agent import Context, handler
from tests.support.running_agent import Start
from tests.support.scripted_server import ScriptedServer, inline
from tests.support.waiting import until


async def test_a_handler_that_outlives_its_lease_keeps_it(
    server: ScriptedServer, start: Start
) -> None:
    gate = asyncio.Event()

    @handler("wait")
    async def wait() -> str:
        await gate.wait()
        return "done"

    server.lease_seconds = 0.3
    await start(server, wait)
    server.send("wait")
    await server.until(lambda: len(server.seen("renew")) >= 8)  # a third of a lease each
    gate.set()
    response = await server.response()

    assert inline(response) == b'"done"'
    renewal = server.seen("renew")[0].json()
    assert renewal["leaseIds"] == ["lease_1"]
    assert renewal["leaseSeconds"] == 60
    assert renewal["agentId"] == server.seen("leases")[0].json()["agentId"]


async def test_a_handler_that_blocks_the_event_loop_keeps_its_lease_and_others_theirs(
    server: ScriptedServer, start: Start, logged: list[dict[str, Any]]
) -> None:
    gate = asyncio.Event()
    begun_at = ended_at = 0.0

    @handler("block")
    async def block() -> str:
        nonlocal begun_at, ended_at
        begun_at = time.monotonic()
        time.sleep(1.0)  # longer than two leases
        ended_at = time.monotonic()
        return "blocked"

    @handler("wait")
    async def wait() -> str:
        await gate.wait()
        return "done"

    server.lease_seconds = 0.45
    # The fake lives in this loop too and would be blocked with it: it gets a thread of its own.
    with _elsewhere(server) as other:
        agent = await start(other, block, wait, watchdog={"blocked_seconds": 0.3})
        other.send("wait")
        await until(lambda: len(other.seen("renew")) >= 1)
        other.send("block")
        await until(lambda: len(other.responses("cmd_2")) == 1)
        renewals = [request.at for request in other.seen("renew")]
        gate.set()
        await until(lambda: len(other.responses("cmd_1")) == 1)
        await agent.stop()

    assert inline(other.responses("cmd_1")[0]) == b'"done"'
    assert inline(other.responses("cmd_2")[0]) == b'"blocked"'
    assert len([at for at in renewals if begun_at < at < ended_at]) >= 2
    blocking = next(event for event in logged if event["event"] == "handler.blocking")
    assert blocking["command"] == "block"
    assert "in block" in blocking["where"]


async def test_one_request_renews_all_that_is_held(server: ScriptedServer, start: Start) -> None:
    gate = asyncio.Event()

    @handler("wait")
    async def wait() -> None:
        await gate.wait()

    server.lease_seconds = 0.3
    for _ in range(3):
        server.send("wait")
    await start(server, wait)
    await server.until(
        lambda: any(len(request.json()["leaseIds"]) == 3 for request in server.seen("renew"))
    )
    gate.set()
    await server.response(3)


async def test_a_lost_lease_stops_its_handler_and_nothing_is_said(
    server: ScriptedServer, start: Start
) -> None:
    stopped = asyncio.Event()

    @handler("wait")
    async def wait() -> None:
        server.lost.add("lease_1")  # not before it runs: one that never began has nothing to stop
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    server.lease_seconds = 0.3
    agent = await start(server, wait)
    server.send("wait")
    async with asyncio.timeout(10):
        await stopped.wait()
    server.send("arc.ping")
    await server.response()
    await agent.stop()

    assert server.responses("cmd_1") == []
    assert server.seen("release") == []


async def test_a_cancelled_command_stops_and_says_so(server: ScriptedServer, start: Start) -> None:
    seen: list[bool] = []

    @handler("wait")
    async def wait(ctx: Context) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.extend([ctx.is_cancelled, ctx.cancelled.is_set()])
            raise

    server.lease_seconds = 0.3
    server.cancelled.add("lease_1")
    await start(server, wait)
    server.send("wait")

    assert (await server.response())["code"] == "CANCELLED"
    assert seen == [True, True]


async def test_a_cancel_reaches_a_plain_function_in_its_thread(
    server: ScriptedServer, start: Start
) -> None:
    started = threading.Event()

    @handler("spin")
    def spin(ctx: Context) -> None:
        started.set()
        while not ctx.is_cancelled:
            time.sleep(0.001)

    server.lease_seconds = 0.3
    await start(server, spin)
    server.send("spin")
    await asyncio.to_thread(started.wait, 5)
    server.cancelled.add("lease_1")

    assert (await server.response())["code"] == "CANCELLED"


async def test_a_failed_renewal_is_no_lost_lease(server: ScriptedServer, start: Start) -> None:
    gate = asyncio.Event()

    @handler("wait")
    async def wait() -> str:
        await gate.wait()
        return "done"

    server.lease_seconds = 0.6
    server.faults["renew"].extend([503, "drop", 500])
    await start(server, wait)
    server.send("wait")
    await server.until(lambda: len(server.seen("renew")) >= 5)
    gate.set()

    assert inline(await server.response()) == b'"done"'


async def test_without_contact_a_handler_runs_on_past_its_lease(
    server: ScriptedServer, start: Start
) -> None:
    gate = asyncio.Event()

    @handler("wait")
    async def wait() -> str:
        await gate.wait()
        return "done"

    server.lease_seconds = 0.3
    server.always["renew"] = "drop"
    await start(server, wait, renew={"at_most_seconds": 0.2})
    server.send("wait")
    await server.until(lambda: len(server.seen("leases")) >= 1)
    asked_at = server.seen("leases")[0].at
    await server.until(
        lambda: bool(server.seen("renew")) and server.seen("renew")[-1].at > asked_at + 0.9
    )
    del server.always["renew"]
    gate.set()

    assert inline(await server.response()) == b'"done"'


async def test_without_contact_a_handler_stops_with_its_lease_when_told_to(
    server: ScriptedServer, start: Start, logged: list[dict[str, Any]]
) -> None:
    stopped = asyncio.Event()

    @handler("wait")
    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    server.lease_seconds = 0.4
    server.always["renew"] = "drop"
    agent = await start(server, wait, lease={"run_on_seconds": 0})
    server.send("wait")
    async with asyncio.timeout(10):
        await stopped.wait()
    await agent.stop()

    assert server.responses() == []
    assert "lease.lapsed" in [event["event"] for event in logged]


async def test_a_result_stays_leased_until_it_is_delivered(
    server: ScriptedServer, start: Start
) -> None:
    server.lease_seconds = 0.3
    server.always["response"] = 503
    await start(server)
    server.send("arc.ping")
    await server.until(lambda: len(server.seen("renew")) >= 6)
    del server.always["response"]
    await server.until(lambda: server.seen("response")[-1].at > server.seen("renew")[-1].at)
    renewals = len(server.seen("renew"))
    server.send("arc.ping")
    await server.until(lambda: len(server.responses("cmd_2")) >= 1)

    assert all("lease_1" not in r.json()["leaseIds"] for r in server.seen("renew")[renewals + 1 :])


class _elsewhere:  # reads as a verb
    """A scripted server in a thread with a loop of its own."""

    def __init__(self, like: ScriptedServer) -> None:
        self._server = ScriptedServer()
        self._server.lease_seconds = like.lease_seconds
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result(10)

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
