"""Stopping and starting again: drain, release, the spool's remains."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

from arc_agent import handler
from tests.support.running_agent import Start
from tests.support.scripted_server import ScriptedServer, inline


async def test_a_stopping_agent_lets_handlers_finish(server: ScriptedServer, start: Start) -> None:
    gate = asyncio.Event()

    @handler("wait")
    async def wait() -> str:
        await gate.wait()
        return "done"

    agent = await start(server, wait, drain={"seconds": 10})
    server.send("wait")
    await server.until(lambda: len(server.seen("leases")) >= 2)
    agent.agent.stop()
    asyncio.get_running_loop().call_later(0.05, gate.set)

    assert await agent.task == 0
    assert inline(server.responses()[0]) == b'"done"'
    assert server.seen("release") == []


async def test_what_does_not_finish_is_released_at_no_cost(
    server: ScriptedServer, start: Start
) -> None:
    begun = asyncio.Event()
    cancelled: list[str] = []

    @handler("wait")
    async def wait() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append("yes")
            raise

    agent = await start(server, wait, drain={"seconds": 0.05})
    server.send("wait")
    await begun.wait()

    assert await agent.stop() == 0
    assert cancelled == ["yes"]
    assert server.responses() == []
    assert server.seen("release")[0].json() == {"leaseId": "lease_1", "reason": "drain"}


async def test_a_stopping_agent_asks_for_nothing_more(server: ScriptedServer, start: Start) -> None:
    agent = await start(server, poll={"wait_seconds": 30})
    await server.until(lambda: len(server.seen("leases")) == 1)

    assert await agent.stop(seconds=3) == 0
    assert len(server.seen("leases")) == 1


async def test_an_agent_that_cannot_deliver_keeps_the_result_for_its_next_start(
    server: ScriptedServer, start: Start
) -> None:
    runs: list[int] = []

    @handler("once")
    async def once() -> bytes:
        runs.append(1)
        return b"r" * 2000  # a body of its own

    server.always["response"] = 503
    first = await start(server, once)
    server.send("once")
    await server.until(lambda: bool(server.seen("response")))
    assert await first.stop() == 0
    del server.always["response"]
    polls = len(server.seen("leases"))
    submits = len(server.seen("response"))
    await start(server, once)
    await server.until(lambda: len(server.seen("leases")) > polls)

    assert len(server.seen("response")) == submits + 1  # before it asked for new work
    assert server.seen("response")[-1].at < server.seen("leases")[polls].at
    assert server.blobs["response-cmd_1"] == b"r" * 2000
    assert len(server.seen("put_blob")) == 1
    assert runs == [1]


async def test_a_restarted_agent_renews_what_it_has_still_to_deliver(
    server: ScriptedServer, start: Start
) -> None:
    server.always["response"] = 503
    first = await start(server)
    server.send("arc.ping")
    await server.until(lambda: bool(server.seen("response")))
    await first.stop()
    renewals = len(server.seen("renew"))
    await start(server)
    await server.until(lambda: len(server.seen("renew")) > renewals)

    assert server.seen("renew")[-1].json()["leaseIds"] == ["lease_1"]


async def test_what_was_refused_for_good_is_remembered(
    server: ScriptedServer, start: Start
) -> None:
    server.faults["response"].append(422)
    agent = await start(server)
    server.send("arc.ping")
    await server.response()
    await agent.stop()

    with sqlite3.connect(agent.directory / "spool.db") as db:
        rows = db.execute("SELECT command_id, reason FROM dead").fetchall()
        left = db.execute("SELECT count(*) FROM responses").fetchone()
    db.close()
    assert rows == [("cmd_1", "the server answered 422")]
    assert left == (0,)


async def test_a_reload_takes_what_it_can_and_says_what_it_cannot(
    server: ScriptedServer, start: Start, logged: list[dict[str, Any]]
) -> None:
    agent = await start(server)
    await server.until(lambda: len(server.seen("agents")) == 1)
    file = agent.directory.parent / "agent.yaml"
    good = file.read_text()
    file.write_text(good.replace('"deployment": "dep-1"', '"deployment": "other"'))
    file.write_text(
        file.read_text().replace(
            '"handlers": {', '"max_concurrent": 2, "handlers": {"exec": {"x": {"argv": ["true"]}}, '
        )
    )
    agent.agent.reload()
    server.send("x")
    await server.response()

    assert agent.live.config.max_concurrent == 2
    assert agent.live.config.deployment == "dep-1"
    await server.until(lambda: len(server.seen("agents")) == 2)
    assert "x" in [each["name"] for each in server.seen("agents")[1].json()["handlers"]]
    restart = next(event for event in logged if event["event"] == "reload.needs_restart")
    assert restart["keys"] == ["deployment"]


async def test_a_reload_of_a_bad_configuration_changes_nothing(
    server: ScriptedServer, start: Start, logged: list[dict[str, Any]]
) -> None:
    agent = await start(server)
    before = agent.live.config
    (agent.directory.parent / "agent.yaml").write_text("max_concurrent: none\n")
    agent.agent.reload()
    server.send("arc.ping")
    await server.response()

    assert agent.live.config is before
    refused = next(event for event in logged if event["event"] == "reload.refused")
    assert "max_concurrent" in refused["reason"]
