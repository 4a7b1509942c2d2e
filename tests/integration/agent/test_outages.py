"""The server is away, slow, or not itself; results wait on the disk."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from arc_agent import handler
from tests.support.running_agent import Start
from tests.support.scripted_server import ScriptedServer, inline
from tests.support.waiting import until


async def test_a_result_outlives_an_outage_and_arrives_once(
    server: ScriptedServer, start: Start, logged: list[dict[str, Any]]
) -> None:
    gate = asyncio.Event()

    @handler("wait")
    async def wait() -> str:
        await gate.wait()
        return "done"

    agent = await start(server, wait)
    server.send("wait")
    await server.until(lambda: len(server.seen("leases")) >= 2)
    await server.stop()
    gate.set()
    await until(lambda: "contact.lost" in [e["event"] for e in logged])
    await until(lambda: "command.ended" in [e["event"] for e in logged])
    await server.start()
    response = await server.response()
    await agent.stop()

    assert inline(response) == b'"done"'
    assert len(server.responses()) == 1
    events = [event["event"] for event in logged]
    assert events.count("contact.lost") == 1
    assert events.count("contact.back") == 1


async def test_results_of_an_outage_arrive_in_order(server: ScriptedServer, start: Start) -> None:
    server.always["response"] = "drop"
    server.always["unknown"] = "drop"  # not even a sign of life
    await start(server, max_concurrent=1)
    for _ in range(20):
        server.send("arc.ping")
    await server.until(lambda: len(server.seen("leases")) >= 21)
    before = len(server.seen("response"))
    del server.always["response"], server.always["unknown"]
    await server.until(lambda: len(server.seen("response")) >= before + 20)

    delivered = [request.path.split("/")[3] for request in server.seen("response")][before:]
    assert delivered[:20] == [f"cmd_{number}" for number in range(1, 21)]


async def test_results_of_an_outage_are_handed_in_together(
    server: ScriptedServer, start: Start
) -> None:
    server.takes_many = True
    server.always["response"] = server.always["respond"] = server.always["unknown"] = "drop"
    agent = await start(server, max_concurrent=1)
    for _ in range(20):
        server.send("arc.ping")
    await server.until(lambda: len(server.seen("leases")) >= 21)
    tried = len(server.requests)
    server.always.clear()
    await server.until(lambda: len(delivered(server, tried)) >= 20)
    await agent.stop()

    assert delivered(server, tried) == [f"cmd_{number}" for number in range(1, 21)]
    handed_in = [r for r in server.requests[tried:] if r.route in ("response", "respond")]
    assert len(handed_in) <= 4


def delivered(server: ScriptedServer, since: int) -> list[str]:
    """The commands whose responses came, in order, alone or together."""
    ids: list[str] = []
    for request in server.requests[since:]:
        if request.route == "response":
            ids.append(request.path.split("/")[3])
        elif request.route == "respond":
            ids += [each["commandId"] for each in request.json()["responses"]]
    return ids


async def together(server: ScriptedServer, start: Start, count: int, settings: Any = None) -> None:
    """An agent of which the results of `cmd_1` to `cmd_{count}` are ready at the same time."""
    gate = asyncio.Event()
    begun = 0

    @handler("wait")
    async def wait() -> str:
        nonlocal begun
        begun += 1
        if begun == count:
            gate.set()
        await gate.wait()
        return "done"

    for _ in range(count):
        server.send("wait")
    await start(server, wait, max_concurrent=count, **(settings or {}))


async def test_what_is_refused_of_results_handed_in_together_is_judged_alone(
    server: ScriptedServer, start: Start, logged: list[dict[str, Any]]
) -> None:
    server.takes_many = True
    numbers = range(1, 41)
    server.refusals = {f"cmd_{number}": (409, 400, 503)[number % 3] for number in numbers}

    def late() -> set[str]:
        return {e["command_id"] for e in logged if e["event"] == "response.too_late"}

    await together(server, start, len(numbers))
    # All have their own answer: those that are late by the first, the others when they go alone.
    await until(lambda: len(server.seen("response")) + len(late()) == len(numbers))

    [first, *_] = server.seen("respond")
    shared = {each["commandId"] for each in first.json()["responses"]}
    assert len(shared) > 1
    alone = {request.path.split("/")[3] for request in server.seen("response")}
    for command_id in shared:
        assert (command_id in alone) is (server.refusals[command_id] != 409)
    assert {each for each in shared if server.refusals[each] == 409} <= late()


async def test_a_result_for_another_server_is_in_no_request_to_the_configured_one(
    server: ScriptedServer, start: Start
) -> None:
    server.takes_many = True
    async with ScriptedServer() as other:

        def elsewhere(lease: dict[str, Any]) -> None:
            handling = lease["envelope"]["responseHandling"]
            handling["submitResponseUrl"] = f"{other.url}/v1/commands/cmd_elsewhere/response"

        server.send("wait", command_id="cmd_elsewhere", change=elsewhere)
        await together(server, start, 30, {"transfer": {"allow_hosts": ["127.0.0.0/8"]}})
        await other.until(lambda: len(other.seen("response")) == 1)
        await server.until(lambda: len(delivered(server, 0)) >= 30)

    assert "cmd_elsewhere" not in delivered(server, 0)


@pytest.mark.parametrize("fault", [400, 403, 404, 405, 413, 500, "page"])
async def test_results_that_the_server_does_not_take_together_go_alone(
    server: ScriptedServer, start: Start, fault: Any
) -> None:
    server.takes_many = True
    server.always["respond"] = fault
    await together(server, start, 30)

    await server.until(lambda: len(server.seen("response")) == 30)
    assert {r.path.split("/")[3] for r in server.seen("response")} == {
        f"cmd_{number}" for number in range(1, 31)
    }
    if fault in (403, 404, 405):
        assert len(server.seen("respond")) <= 4  # as many as were on their way


@pytest.mark.parametrize("fault", ["hold", "drop"])
async def test_results_that_get_no_answer_together_go_alone_from_a_server_that_is_there(
    server: ScriptedServer, start: Start, fault: Any
) -> None:
    server.takes_many = True
    server.always["respond"] = fault
    short = {"url": server.url, "request_timeout_seconds": 0.5, "max_back_off_seconds": 0.2}
    await together(server, start, 30, {"server": short})

    await server.until(lambda: len(server.seen("response")) == 30)
    assert len(server.seen("respond")) <= 5


async def test_a_response_that_alone_fails_does_not_hold_up_the_rest(
    server: ScriptedServer, start: Start
) -> None:
    server.faults["response"].extend([500])
    await start(server)
    server.send("arc.ping")
    await server.until(lambda: len(server.seen("response")) == 1)
    server.faults["response"].extend([200, 500, 500])
    server.send("arc.ping")
    await server.until(lambda: len(server.responses("cmd_2")) >= 1)
    await server.until(lambda: len(server.responses("cmd_1")) >= 2)


async def test_what_the_server_says_to_a_response_is_its_last_word(
    server: ScriptedServer, start: Start, logged: list[dict[str, Any]]
) -> None:
    agent = await start(server)
    for status in (404, 409, 410, 400, 413, 422):
        server.faults["response"].append(status)
        server.send("arc.ping")
        await server.until(lambda: not server.faults["response"])
    await agent.stop()

    assert len(server.responses()) == 6
    assert [e["event"] for e in logged if e["event"].startswith("response.")] == [
        *["response.too_late"] * 3,
        *["response.refused"] * 3,
    ]


@pytest.mark.parametrize("fault", ["bare 403", "bare 404", "html 404"])
async def test_what_something_on_the_way_says_to_a_response_is_not_the_servers_last_word(
    server: ScriptedServer, start: Start, logged: list[dict[str, Any]], fault: Any
) -> None:
    server.always["response"] = fault  # an ingress that is set up anew, say
    agent = await start(server)
    server.send("arc.ping", command_id="cmd")
    await server.until(lambda: len(server.seen("response")) >= 4)
    del server.always["response"]
    seen = len(server.seen("response"))
    await server.until(lambda: len(server.seen("response")) > seen)
    await agent.stop()

    events = [each["event"] for each in logged if each["event"].startswith(("resp", "contact"))]
    assert events == ["response.blocked", "response.delivered"], "no line for each attempt"


async def test_a_signature_that_ran_out_is_replaced_by_the_token(
    server: ScriptedServer, start: Start, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("t0ken\n")
    server.faults["response"].append(401)
    agent = await start(server, server={"token_file": str(token)})
    server.send("arc.ping")
    await server.response(2)
    await agent.stop()

    first, second = server.seen("response")
    assert "authorization" not in first.headers
    assert second.path == "/v1/commands/cmd_1/response?lease=lease_1"
    assert second.headers["authorization"] == "Bearer t0ken"


async def test_a_body_that_is_missing_after_all_is_uploaded_again_once(
    server: ScriptedServer, start: Start
) -> None:
    server.faults["response"].append(400)
    await start(server)
    server.send("arc.echo", raw=bytes(4000))
    await server.response(2)

    assert len(server.seen("put_blob")) == 2


async def test_an_upload_is_not_repeated_when_only_the_last_step_failed(
    server: ScriptedServer, start: Start
) -> None:
    server.faults["response"].extend([503, "drop", 429])
    await start(server)
    server.send("arc.echo", raw=bytes(4000))
    await server.response(4)

    assert len(server.seen("put_blob")) == 1


async def test_an_upload_url_that_ran_out_sends_the_result_by_the_server(
    server: ScriptedServer, start: Start
) -> None:
    server.always["put_blob"] = 403
    await start(server)
    server.send("arc.echo", raw=bytes(4000))

    assert inline(await server.response()) == bytes(4000)
    assert server.seen("response")[0].path == "/v1/commands/cmd_1/response?lease=lease_1"


async def test_a_web_page_is_no_answer(
    server: ScriptedServer, start: Start, logged: list[dict[str, Any]]
) -> None:
    server.faults["leases"].append("page")
    server.faults["response"].append("page")
    agent = await start(server)
    server.send("arc.ping")
    await server.response(2)
    await agent.stop()

    assert [e["event"] for e in logged].count("response.delivered") == 1


async def test_a_lease_answer_that_is_garbage_is_no_end(
    server: ScriptedServer, start: Start
) -> None:
    server.faults["leases"].extend([400, 404, 500, 429, "drop"])
    await start(server)
    server.send("arc.ping")
    await server.response()


async def test_a_refused_agent_goes_on_trying_and_says_so_once(
    server: ScriptedServer, start: Start, tmp_path: Path, logged: list[dict[str, Any]]
) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    server.always["leases"] = 403
    await start(server, server={"token_file": str(token)})
    await server.until(lambda: len(server.seen("leases")) >= 4)
    token.write_text("new")
    await server.until(lambda: server.seen("leases")[-1].headers["authorization"] == "Bearer new")
    del server.always["leases"]
    server.send("arc.ping")
    await server.response()

    events = [event["event"] for event in logged]
    assert events.count("contact.refused") == 1
    assert events.count("contact.back") == 1


async def test_a_token_that_was_replaced_is_used_at_once(
    server: ScriptedServer, start: Start, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    agent = await start(server, server={"token_file": str(token)})
    server.send("arc.ping")
    await server.response()
    token.write_text("new")
    server.faults["leases"].append(401)
    server.send("arc.ping")
    await server.response(2)
    server.send("arc.ping")
    await server.response(3)
    await agent.stop()

    used = [request.headers["authorization"] for request in server.seen("leases")]
    assert used[0] == "Bearer old"
    assert used[-1] == "Bearer new"


async def test_no_room_no_lease(
    server: ScriptedServer, start: Start, logged: list[dict[str, Any]]
) -> None:
    agent = await start(server, spool={"max_bytes": 0})
    await until(lambda: "spool.full" in [e["event"] for e in logged])
    await server.until(lambda: bool(server.seen("agents")))
    assert server.seen("leases") == []
    assert server.seen("agents")[-1].json()["status"] == {"state": "degraded", "note": "disk"}

    file = agent.directory.parent / "agent.yaml"
    config = json.loads(file.read_text())
    config["spool"]["max_bytes"] = 10_000
    file.write_text(json.dumps(config))
    agent.agent.reload()
    server.send("arc.ping")
    await server.response()
    assert "status" not in server.seen("agents")[-1].json()


async def test_a_finished_result_is_delivered_under_a_new_lease_instead_of_running_again(
    server: ScriptedServer, start: Start
) -> None:
    runs: list[int] = []

    @handler("once")
    async def once() -> str:
        runs.append(1)
        return "done"

    server.always["response"] = 503
    await start(server, once)
    server.send("once", command_id="cmd_x")
    await server.until(lambda: bool(server.seen("response")))
    server.send("once", command_id="cmd_x")
    await server.until(lambda: "lease=lease_2" in server.seen("response")[-1].path)
    del server.always["response"]
    server.send("arc.ping")
    await server.until(lambda: len(server.responses("cmd_3")) >= 1)

    assert runs == [1]
    assert server.seen("release") == []
