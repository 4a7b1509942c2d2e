"""Events that handlers report while they run: sent to the server, or dropped in silence."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from arc_agent import Context, handler
from tests.support.running_agent import Start
from tests.support.scripted_server import ScriptedServer

FAST = {"interval_seconds": 0.05}


def lines(server: ScriptedServer) -> list[str]:
    """All lines that were taken, in order, each once."""
    told: dict[tuple[str, int], str] = {}
    for request in server.seen("events"):
        body = request.json()
        for line in body["lines"]:
            told.setdefault((body["leaseId"], line["number"]), line["message"])
    return list(told.values())


def progress(server: ScriptedServer) -> list[dict[str, Any]]:
    """Return what the server was told about progress."""
    return [r.json()["progress"] for r in server.seen("events") if "progress" in r.json()]


async def test_lines_and_progress_arrive_while_the_handler_runs(
    server: ScriptedServer, start: Start
) -> None:
    gate = asyncio.Event()

    @handler("slow")
    async def slow(ctx: Context) -> None:
        ctx.log.info("begun", rows=7)
        ctx.progress(3, 10, "tables")
        await gate.wait()
        ctx.log.info("the last words")

    await start(server, slow, events=FAST)
    server.send("slow")
    await server.until(lambda: lines(server) == ["begun rows=7"] and len(progress(server)) == 1)
    assert not server.responses()
    gate.set()
    await server.response()
    await server.until(lambda: lines(server) == ["begun rows=7", "the last words"])

    assert progress(server) == [{"done": 3.0, "total": 10.0, "text": "tables"}]
    assert {r.path for r in server.seen("events")} == {"/v1/commands/cmd_1/events"}


async def test_a_thread_that_talks_without_end_is_told_in_few_requests(
    server: ScriptedServer, start: Start
) -> None:
    done = threading.Event()

    @handler("talk")
    def talk(ctx: Context) -> None:
        for number in range(5_000):
            ctx.log.info(f"line {number}")
            ctx.progress(number)
        done.wait()

    await start(server, talk, events=FAST | {"buffer_bytes": 20_000})
    server.send("talk")
    await server.until(lambda: "line 4999" in lines(server))
    done.set()
    await server.response()

    assert len(server.seen("events")) < 50
    dropped = server.seen("events")[-1].json().get("dropped", 0)
    assert len(lines(server)) + dropped == 5_000


@pytest.mark.parametrize("lost", [True, False])
async def test_what_could_not_be_sent_is_sent_later_and_delays_no_response(
    server: ScriptedServer, start: Start, lost: bool
) -> None:
    server.faults["events"].extend(["drop", 503] if lost else [429])

    @handler("quick")
    async def quick(ctx: Context) -> None:
        ctx.log.info("said")

    await start(server, quick, events=FAST)
    server.send("quick")
    await server.response()
    await server.until(lambda: not server.faults["events"])
    await server.until(lambda: len(server.seen("events")) >= (3 if lost else 2))

    assert lines(server) == ["said"]


async def test_a_server_that_keeps_no_events_is_asked_once(
    server: ScriptedServer, start: Start
) -> None:
    server.keeps_events = False

    @handler("talk")
    async def talk(ctx: Context) -> None:
        ctx.log.info("a line")
        await server.until(lambda: len(server.seen("events")) == 1)
        ctx.log.info("another line")

    await start(server, talk, events=FAST, max_concurrent=1)
    server.send("talk")
    server.send("talk")
    await server.response(2)

    assert len(server.seen("events")) == 1


@pytest.mark.parametrize("status", [400, 404, 409, 413])
async def test_a_command_whose_words_are_refused_does_not_silence_the_next(
    server: ScriptedServer, start: Start, status: int
) -> None:
    @handler("talk")
    async def talk(ctx: Context) -> None:
        ctx.log.info(f"of {ctx.command_id}")

    server.faults["events"].append(status)
    server.refusal = "COMMAND_NOT_FOUND"
    await start(server, talk, events=FAST, max_concurrent=1)
    server.send("talk")
    await server.response()
    await server.until(lambda: not server.faults["events"])
    server.send("talk")
    await server.until(lambda: "of cmd_2" in lines(server))


async def test_a_host_that_sends_nothing_sends_nothing(
    server: ScriptedServer, start: Start
) -> None:
    @handler("talk")
    async def talk(ctx: Context) -> None:
        ctx.log.info("said")
        ctx.progress(1)

    await start(server, talk, events=FAST | {"enabled": False})
    server.send("talk")
    await server.response()

    assert not server.seen("events")
