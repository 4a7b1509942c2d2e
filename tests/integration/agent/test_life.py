"""One command from its lease to its response, and what goes with it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from arc_agent import CommandFailed, Context, handler
from tests.support.running_agent import RunningAgent, Start
from tests.support.scripted_server import ScriptedServer, inline
from tests.support.waiting import settle


async def test_a_command_runs_and_its_result_is_handed_in(
    server: ScriptedServer, start: Start
) -> None:
    @handler("greet")
    async def greet(params: dict[str, Any], ctx: Context) -> dict[str, Any]:
        return {"hello": params["name"], "attempt": ctx.attempt}

    await start(server, greet)
    server.send("greet", {"name": "Zoë"})

    response = await server.response()

    assert inline(response) == b'{"hello":"Zo\\u00eb","attempt":1}'  # ASCII, for 1.x senders
    submitted = server.seen("response")[0]
    assert submitted.path == "/v1/commands/cmd_1/response?response_token=secret&lease=lease_1"
    assert "authorization" not in submitted.headers


async def test_the_lease_request_says_who_asks_and_for_how_much(
    server: ScriptedServer, start: Start
) -> None:
    await start(server, max_concurrent=3, target={"resource_id": "db"})
    await server.until(lambda: len(server.seen("leases")) >= 2)

    first, asked = (each.json() for each in server.seen("leases")[:2])

    assert first == {name: asked[name] for name in asked if name != "waitSeconds"}
    agent_id = asked.pop("agentId")
    assert asked == {
        "deploymentId": "dep-1",
        "target": {"resourceId": "db", "resourceType": "daemon"},
        "maxLeases": 3,
        "leaseSeconds": 60,
        "waitSeconds": 5.0,
    }
    assert agent_id.startswith("test-")
    registered = server.seen("agents")[0]
    assert registered.path == f"/v1/agents/{agent_id}"
    assert "arc.ping" in [each["name"] for each in registered.json()["handlers"]]


def registrations(server: ScriptedServer) -> list[tuple[str, str | None, str | None]]:
    """Return what agents registered: their id, the state of their status, and what they replace."""
    told = [(each.path.rpartition("/")[2], each.json()) for each in server.seen("agents")]
    return [(id_, (it.get("status") or {}).get("state"), it.get("replaces")) for id_, it in told]


async def started(server: ScriptedServer, start: Start) -> RunningAgent:
    """An agent that has registered: it polls."""
    polls = len(server.seen("leases"))
    agent = await start(server)
    await server.until(lambda: len(server.seen("leases")) > polls)
    return agent


async def test_two_starts_are_two_agents_and_the_second_replaces_the_first(
    server: ScriptedServer, start: Start
) -> None:
    first = await started(server, start)
    await first.stop()
    second = await started(server, start)
    await second.stop()

    ids = [first.agent.agent_id, second.agent.agent_id]
    assert len(set(ids)) == 2
    assert registrations(server) == [
        (ids[0], None, None),
        (ids[0], "gone", None),
        (ids[1], None, ids[0]),
        (ids[1], "gone", ids[0]),
    ]


async def test_a_start_replaces_the_last_one_that_the_server_knows(
    server: ScriptedServer, start: Start
) -> None:
    known = await started(server, start)
    await known.stop()
    server.always["agents"] = 503
    unknown = await started(server, start)
    await unknown.stop()
    del server.always["agents"]
    last = await started(server, start)

    *_, refused, registered = registrations(server)
    assert refused[0] == unknown.agent.agent_id, "unknown to the server, it says no goodbye"
    assert registered == (last.agent.agent_id, None, known.agent.agent_id)


async def test_an_id_that_cannot_be_kept_or_read_stops_nothing(
    server: ScriptedServer, start: Start
) -> None:
    first = await started(server, start)
    await first.stop()
    kept = first.directory / "registered"
    kept.unlink()
    kept.mkdir()

    await started(server, start)

    assert registrations(server)[-1][2] is None


async def test_an_agent_without_contact_stops_without_a_goodbye(
    server: ScriptedServer, start: Start, logged: list[dict[str, Any]]
) -> None:
    agent = await start(server)
    await server.until(lambda: bool(server.seen("leases")))
    server.always["leases"] = "drop"
    server.let_go()
    await server.until(lambda: any(each["event"] == "contact.lost" for each in logged))

    assert await agent.stop() == 0
    assert [state for _, state, _ in registrations(server)] == [None]


async def test_many_commands_run_at_once_but_never_more_than_allowed(
    server: ScriptedServer, start: Start
) -> None:
    running, most = 0, 0
    is_full = asyncio.Event()

    @handler("work")
    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            is_full.set()
        await is_full.wait()
        await settle()
        running -= 1

    for _ in range(12):
        server.send("work")
    await start(server, work, max_concurrent=3)
    await server.response(12)

    assert most == 3


async def test_an_error_of_the_handlers_own_reaches_the_sender(
    server: ScriptedServer, start: Start
) -> None:
    @handler("fail")
    def fail() -> None:
        raise CommandFailed("VAULT_SEALED", "the vault is sealed", "since noon")

    await start(server, fail)
    server.send("fail")

    assert await server.response() == {
        "status": "error",
        "code": "VAULT_SEALED",
        "message": "the vault is sealed",
        "details": "since noon",
    }


async def test_details_that_are_no_text_reach_the_sender_as_json(
    server: ScriptedServer, start: Start
) -> None:
    @handler("fail")
    def fail() -> None:
        raise CommandFailed("VAULT_SEALED", "the vault is sealed", details={"since": [12, None]})

    await start(server, fail)
    server.send("fail")

    assert (await server.response())["details"] == '{"since":[12,null]}'


async def test_a_traceback_stays_on_the_host(server: ScriptedServer, start: Start) -> None:
    @handler("fail")
    async def fail() -> None:
        raise RuntimeError("boom")

    await start(server, fail)
    server.send("fail")

    response = await server.response()

    assert response == {"status": "error", "code": "HANDLER_ERROR", "message": "RuntimeError: boom"}


async def test_a_traceback_is_sent_when_the_configuration_says_so(
    server: ScriptedServer, start: Start
) -> None:
    @handler("fail")
    async def fail() -> None:
        raise RuntimeError("boom")

    await start(server, fail, handlers={"send_tracebacks": True})
    server.send("fail")

    assert "in fail" in (await server.response())["details"]


async def test_nothing_that_a_handler_raises_ends_the_agent(
    server: ScriptedServer, start: Start
) -> None:
    @handler("exit")
    async def exit_async() -> None:
        raise SystemExit(3)

    @handler("exit.thread")
    def exit_thread() -> None:
        raise KeyboardInterrupt

    @handler("cancel.self")
    async def cancel_self() -> None:
        raise asyncio.CancelledError

    await start(server, exit_async, exit_thread, cancel_self)
    for command in ("exit", "exit.thread", "cancel.self"):
        server.send(command)
    await server.response(3)
    server.send("arc.ping")
    await server.response(4)

    answers = dict(_codes(server))
    assert answers == {
        "cmd_1": "HANDLER_ERROR",
        "cmd_2": "HANDLER_ERROR",
        "cmd_3": "HANDLER_ERROR",
        "cmd_4": None,
    }


async def test_a_command_without_a_handler_is_unknown(server: ScriptedServer, start: Start) -> None:
    await start(server)
    server.send("nobody.knows")

    assert (await server.response())["code"] == "UNKNOWN_COMMAND"


async def test_a_large_result_goes_to_the_store_first(server: ScriptedServer, start: Start) -> None:
    @handler("large")
    async def large() -> bytes:
        return bytes(5000)

    await start(server, large)
    server.send("large")

    assert await server.response() == {
        "status": "success",
        "response": {"mode": "storage", "size": 5000, "storagePutUsed": True},
    }
    assert server.blobs["response-cmd_1"] == bytes(5000)
    put = server.seen("put_blob")[0]
    assert put.headers["x-ms-blob-type"] == "BlockBlob"
    assert put.headers["content-length"] == "5000"
    assert "authorization" not in put.headers
    assert "content-type" not in put.headers


async def test_results_may_be_files_and_streams(server: ScriptedServer, start: Start) -> None:
    @handler("file")
    def file(ctx: Context) -> Path:
        path = ctx.directory / "result"
        path.write_bytes(b"f" * 3000)
        return path

    @handler("stream")
    async def stream() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"s" * 100

    @handler("plain.stream")
    def plain_stream() -> Any:
        yield b"small"

    agent = await start(server, file, stream, plain_stream)
    for command in ("file", "stream", "plain.stream"):
        server.send(command)
    await server.response(3)

    assert server.blobs["response-cmd_1"] == b"f" * 3000
    assert server.blobs["response-cmd_2"] == b"s" * 3000
    assert inline(server.responses("cmd_3")[0]) == b"small"
    await agent.stop()
    assert list((agent.directory / "tmp").iterdir()) == []
    assert list((agent.directory / "bodies").iterdir()) == []


async def test_stored_params_come_as_a_stream_and_echo_back_byte_for_byte(
    server: ScriptedServer, start: Start
) -> None:
    data = hashlib.shake_256(b"params").digest(3_000_000)
    await start(server)
    server.send("arc.echo", raw=data, stored=True)
    await server.response()

    assert server.blobs["response-cmd_1"] == data
    assert server.seen("get_blob")[0].headers["x-ms-blob-type"] == "BlockBlob"
    assert "authorization" not in server.seen("get_blob")[0].headers


async def test_a_fetch_that_breaks_off_goes_on_where_it_broke(
    server: ScriptedServer, start: Start
) -> None:
    data = hashlib.shake_256(b"params").digest(2_000_000)
    server.cut_blob_after.extend([700_000, 600_000])
    await start(server)
    server.send("arc.echo", raw=data, stored=True)
    await server.response()

    ranges = [request.headers.get("range") for request in server.seen("get_blob")]
    assert server.blobs["response-cmd_1"] == data
    assert ranges[0] is None
    assert len(ranges) == 3
    assert all(each is not None for each in ranges[1:])


async def test_a_fetch_without_ranges_starts_over(server: ScriptedServer, start: Start) -> None:
    data = hashlib.shake_256(b"params").digest(1_000_000)
    server.takes_ranges = False
    server.cut_blob_after.append(700_000)
    await start(server)
    server.send("arc.echo", raw=data, stored=True)
    await server.response()

    assert server.blobs["response-cmd_1"] == data
    assert [request.headers.get("range") for request in server.seen("get_blob")] == [None, None]


async def test_trouble_with_params_in_passing_gives_the_lease_back(
    server: ScriptedServer, start: Start
) -> None:
    server.always["get_blob"] = 503
    await start(server, transfer={"give_up_seconds": 0.2})
    server.send("arc.echo", raw=b"x", stored=True)
    await server.until(lambda: bool(server.seen("release")))

    assert server.seen("release")[0].json()["reason"] == "params_unavailable"
    assert server.responses() == []


async def test_params_that_are_not_there_fail_the_command(
    server: ScriptedServer, start: Start
) -> None:
    server.always["get_blob"] = 404
    await start(server)
    server.send("arc.echo", raw=b"x", stored=True)

    assert (await server.response())["code"] == "STORAGE_OPERATION_FAILED"


async def test_a_lease_that_cannot_be_read_does_not_take_the_others_along(
    server: ScriptedServer, start: Start
) -> None:
    server.send("arc.ping", change=lambda lease: lease["envelope"].pop("params"))
    server.send("arc.ping", change=lambda lease: lease.pop("envelope"))
    server.send("arc.ping")
    await start(server)
    await server.response(2)
    await server.until(lambda: bool(server.seen("release")))

    assert dict(_codes(server)) == {"cmd_1": "INVALID_ENVELOPE", "cmd_3": None}
    assert "/lease_2/" in server.seen("release")[0].path


async def test_an_envelope_of_another_deployment_is_refused(
    server: ScriptedServer, start: Start
) -> None:
    await start(server)
    server.send("arc.ping", change=lambda lease: lease["envelope"].update(deploymentId="other"))

    assert (await server.response())["code"] == "INVALID_ENVELOPE"


async def test_a_response_url_that_leads_astray_is_not_used(
    server: ScriptedServer, start: Start
) -> None:
    def spoil(lease: dict[str, Any]) -> None:
        lease["envelope"]["responseHandling"]["submitResponseUrl"] = "http://169.254.169.254/latest"

    await start(server)
    server.send("arc.ping", change=spoil)

    assert (await server.response())["code"] == "INVALID_ENVELOPE"
    assert server.seen("response")[0].path == "/v1/commands/cmd_1/response?lease=lease_1"


async def test_relative_urls_belong_to_the_server_that_gave_them(
    server: ScriptedServer, start: Start
) -> None:
    def relate(lease: dict[str, Any]) -> None:
        handling = lease["envelope"]["responseHandling"]
        handling["submitResponseUrl"] = "cmd_1/response?response_token=rel"

    await start(server)
    server.send("arc.ping", change=relate)
    await server.response()

    assert server.seen("response")[0].path == "/v1/commands/cmd_1/response?response_token=rel"
    submitted = server.seen("response")[0]
    assert "authorization" not in submitted.headers


async def test_a_command_that_already_runs_here_is_given_back_untouched(
    server: ScriptedServer, start: Start
) -> None:
    gate = asyncio.Event()

    @handler("wait")
    async def wait() -> str:
        await gate.wait()
        return "done"

    await start(server, wait)
    server.send("wait", command_id="cmd_x")
    await server.until(lambda: len(server.seen("leases")) >= 2)
    server.send("wait", command_id="cmd_x")
    await server.until(lambda: bool(server.seen("release")))
    gate.set()
    response = await server.response()

    assert "/lease_2/" in server.seen("release")[0].path
    assert inline(response) == b'"done"'
    assert "lease=lease_1" in server.seen("response")[0].path


async def test_a_deadline_bounds_the_handler(server: ScriptedServer, start: Start) -> None:
    cancelled = asyncio.Event()

    @handler("slow")
    async def slow(ctx: Context) -> None:
        try:
            await asyncio.sleep(30)
        finally:
            cancelled.set()

    await start(server, slow)
    server.send("slow", deadline_in=1.3)

    assert (await server.response())["code"] == "HANDLER_TIMEOUT"
    assert cancelled.is_set()


async def test_a_deadline_that_has_passed_stops_the_command_before_it_starts(
    server: ScriptedServer, start: Start
) -> None:
    called: list[int] = []

    @handler("slow")
    async def slow() -> None:
        called.append(1)

    await start(server, slow)
    server.send("slow", deadline_in=-10)

    assert (await server.response())["code"] == "HANDLER_TIMEOUT"
    assert called == []


async def test_a_handler_that_ignores_its_cancellation_keeps_its_slot_until_it_ends(
    server: ScriptedServer, start: Start, logged: list[dict[str, Any]]
) -> None:
    gate = asyncio.Event()

    @handler("stubborn", timeout_seconds=0.1)
    async def stubborn() -> str:
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue
        return "late"

    await start(server, stubborn, max_concurrent=1, handlers={"grace_seconds": 0.05})
    server.send("stubborn")
    response = await server.response()
    polls = len(server.seen("leases"))
    server.send("arc.ping")
    gate.set()
    await server.response(2)

    assert response["code"] == "HANDLER_TIMEOUT"
    assert polls == 1  # the second command was not asked for while the slot was taken
    assert "handler.abandoned" in [event["event"] for event in logged]
    assert len(server.responses("cmd_1")) == 1


async def test_a_plain_function_sees_in_its_thread_that_it_should_stop(
    server: ScriptedServer, start: Start
) -> None:
    @handler("thread", timeout_seconds=0.1)
    def thread(ctx: Context) -> None:
        while not ctx.is_cancelled:
            pass

    agent = await start(server, thread)
    server.send("thread")

    assert (await server.response())["code"] == "HANDLER_TIMEOUT"
    assert await agent.stop() == 0
    assert not agent.agent.has_abandoned


async def test_params_are_told_by_type(server: ScriptedServer, start: Start) -> None:
    @handler("any")
    async def untyped(params: Any) -> str:
        return repr(params)

    await start(server, untyped)
    server.send("any", raw=b'{"a": 1}')
    server.send("any", raw='"é"'.encode("latin-1"))
    server.send("any", raw=b"\xff\x00")
    await server.response(3)

    results = {i: json.loads(inline(server.responses(f"cmd_{i}")[0])) for i in (1, 2, 3)}
    assert results == {1: "{'a': 1}", 2: "'é'", 3: r"b'\xff\x00'"}


def _codes(server: ScriptedServer) -> list[tuple[str, str | None]]:
    """Command id and error code of every response."""
    return [
        (request.path.split("/")[3], request.json().get("code"))
        for request in server.seen("response")
    ]
