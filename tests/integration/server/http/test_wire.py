"""The socket itself: garbage, smuggling, limits, slow clients, keep-alive."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from arc_protocol.errors import StoreUnavailable
from arc_server.auth.tokens import Scope, new_token
from tests.support.running_server import OWN, Client, Serve, inline
from tests.support.waiting import until
from tests.support.wire import HOST, Wire, authorized

CREATE = json.dumps({"deploymentId": OWN, "command": "report", "params": inline(b"{}")}).encode()


GARBAGE = {
    "noise": bytes(range(256)) * 4,
    "TLS": bytes.fromhex("16030100ba010000b60303") + b"\x00" * 100,
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"GET /healthz\r\n\r\n",
    "a version that is none": b"GET /healthz HTTP/9.9.9\r\nHost: a\r\n\r\n",
    "a space before the colon": b"GET /healthz HTTP/1.1\r\nHost : a\r\n\r\n",
    "a header without a colon": b"GET /healthz HTTP/1.1\r\nHost a\r\n\r\n",
    "a folded header": b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
    "a NUL in a header": b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: b\x00c\r\n\r\n",
    "a bare CR in a header": b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n",
    "a NUL in the target": b"GET /heal\x00thz HTTP/1.1\r\nHost: a\r\n\r\n",
    "a space in the target": b"GET /heal thz HTTP/1.1\r\nHost: a\r\n\r\n",
    "a length and chunks": (
        b"POST /v1/commands HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "two lengths": (
        b"POST /v1/commands HTTP/1.1\r\nHost: a\r\n"
        b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd"
    ),
    "a negative length": b"POST /v1/commands HTTP/1.1\r\nHost: a\r\nContent-Length: -4\r\n\r\n",
    "a length with a sign": b"POST /v1/commands HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\n",
    "a length in hex": b"POST /v1/commands HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\n",
    "a length past 64 bits": (
        b"POST /v1/commands HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n"
    ),
    "an encoding that is not chunked": (
        b"POST /v1/commands HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n"
    ),
    "chunked twice": (
        b"POST /v1/commands HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n"
    ),
    "an encoding with a vertical tab": (
        b"POST /v1/commands HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n"
    ),
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_what_is_no_http_gets_a_400_with_the_json_body_and_the_connection_ends(
    client: Client, what: str
) -> None:
    wire = await (await Wire.open(client)).send(GARBAGE[what])

    assert await wire.error() == (400, "BAD_REQUEST")
    assert await wire.is_closed()
    await wire.close()


@pytest.mark.parametrize(
    "route",
    ["POST /v1/commands", "GET /v1/commands/x", "POST /v1/agents/enrol", "GET /healthz"],
)
async def test_two_authorization_headers_are_refused(client: Client, route: str) -> None:
    twice = f"Authorization: Bearer {client.token}\r\n" * 2
    wire = await Wire.open(client)

    await wire.send(f"{route} HTTP/1.1\r\n{HOST}{twice}Content-Length: 0\r\n\r\n")

    assert await wire.error() == (400, "BAD_REQUEST")
    await wire.close()


BAD_CHUNKS = {
    "a size that is none": b"xyz\r\nabc\r\n0\r\n\r\n",
    "a size that is negative": b"-1\r\n\r\n",
    "a size past 64 bits": b"fffffffffffffffff\r\n",
    "no line end after the data": b"3\r\nabcdef\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("what", BAD_CHUNKS)
async def test_broken_chunks_are_refused_and_nothing_is_stored(client: Client, what: str) -> None:
    head = (
        f"POST /v1/commands HTTP/1.1\r\n{HOST}Authorization: Bearer {client.token}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    wire = await (await Wire.open(client)).send(head.encode() + BAD_CHUNKS[what])

    assert (await wire.error())[0] == 400
    assert await wire.is_closed()
    await wire.close()
    assert (await client.call("GET", "/v1/commands")).json == {"commands": []}


async def test_a_second_request_hidden_in_a_body_is_not_run(client: Client) -> None:
    hidden = authorized(client, "POST /v1/commands HTTP/1.1", CREATE)
    wire = await Wire.open(client)

    await wire.send(authorized(client, "GET /healthz HTTP/1.1", hidden))

    assert (await wire.answer())[0] == 200
    await wire.close()
    assert (await client.call("GET", "/v1/commands")).json == {"commands": []}


@pytest.mark.parametrize(
    "request_head",
    [
        "GET /" + "x" * 9000 + " HTTP/1.1\r\n" + HOST,
        "GET /healthz HTTP/1.1\r\n" + HOST + "X: " + "x" * 9000 + "\r\n",
        "GET /healthz HTTP/1.1\r\n" + HOST + "X" * 9000 + ": x\r\n",
        "GET /healthz HTTP/1.1\r\n" + HOST + "".join(f"X-{n}: x\r\n" for n in range(200)),
    ],
    ids=["line", "value", "name", "number"],
)
async def test_headers_above_the_limit_are_a_431(client: Client, request_head: str) -> None:
    wire = await (await Wire.open(client)).send(f"{request_head}\r\n")

    assert await wire.error() == (431, "HEADERS_TOO_LARGE")
    assert await wire.is_closed()
    await wire.close()


async def test_a_header_that_never_ends_is_cut_off(client: Client) -> None:
    wire = await (await Wire.open(client)).send(f"GET /healthz HTTP/1.1\r\n{HOST}X: ")

    for _ in range(5):
        await wire.send("x" * 4096)

    assert await wire.error() == (431, "HEADERS_TOO_LARGE")
    await wire.close()


@pytest.mark.parametrize("host", ["", "Host: a b\r\n", "Host: a/b\r\n", "Host: a@b\r\n"])
async def test_a_request_whose_answer_needs_a_host_and_has_none_is_refused(
    client: Client, host: str
) -> None:
    head = f"POST /v1/commands HTTP/1.1\r\n{host}Authorization: Bearer {client.token}\r\n"
    wire = await Wire.open(client)

    await wire.send(f"{head}Content-Length: {len(CREATE)}\r\n\r\n".encode() + CREATE)

    assert await wire.error() == (400, "BAD_REQUEST")
    await wire.close()
    assert (await client.call("GET", "/v1/commands")).json == {"commands": []}


# time


async def test_headers_that_arrive_too_slowly_are_a_408(serve: Serve) -> None:
    async with serve(http={"header_seconds": 0.1}) as client:
        wire = await (await Wire.open(client)).send("GET /healthz HTTP/1.1\r\nHost")

        assert await wire.error() == (408, "REQUEST_TIMEOUT")
        assert await wire.is_closed()
        await wire.close()


async def test_a_connection_on_which_nothing_is_said_is_closed(serve: Serve) -> None:
    async with serve(http={"header_seconds": 0.1}) as client:
        wire = await Wire.open(client)

        assert await wire.is_closed()
        await wire.close()


async def test_a_body_that_arrives_too_slowly_is_a_408_and_nothing_is_stored(serve: Serve) -> None:
    async with serve(http={"body_seconds": 0.1}) as client:
        wire = await Wire.open(client)

        await wire.send(authorized(client, "POST /v1/commands HTTP/1.1", CREATE)[:-1])

        assert await wire.error() == (408, "REQUEST_TIMEOUT")
        await wire.close()
        assert (await client.call("GET", "/v1/commands")).json == {"commands": []}


async def test_a_body_may_take_long_while_it_arrives_fast_enough(serve: Serve) -> None:
    async with serve(http={"body_seconds": 0.2, "body_bytes_per_second": 1}) as client:
        wire = await Wire.open(client)
        request = authorized(client, "POST /v1/commands HTTP/1.1", CREATE)
        loop = asyncio.get_running_loop()
        begun = loop.time()

        sent = len(request) - len(CREATE)
        await wire.send(request[:sent])
        while loop.time() - begun < 0.6:  # three stretches of the rate
            await wire.send(request[sent : sent + 1])
            sent += 1
            next_at = loop.time() + 0.05
            await until(partial(_is_past, next_at))
        await wire.send(request[sent:])

        assert (await wire.answer())[0] == 200
        await wire.close()


def _is_past(moment: float) -> bool:
    return asyncio.get_running_loop().time() > moment


async def test_bytes_that_came_early_earn_no_time_later(serve: Serve) -> None:
    async with serve(http={"body_seconds": 0.1, "body_bytes_per_second": 1000}) as client:
        wire = await Wire.open(client)
        body = b'{"deploymentId": "' + b"x" * 3_000_000

        await wire.send(authorized(client, "POST /v1/commands HTTP/1.1", body + b'"}')[:-2])

        assert await wire.error() == (408, "REQUEST_TIMEOUT")
        await wire.close()


async def test_a_json_body_has_a_time_in_all_however_steadily_it_arrives(serve: Serve) -> None:
    limits = {"body_seconds": 0.2, "body_bytes_per_second": 1, "body_total_seconds": 0.5}
    async with serve(http=limits) as client:
        wire = await Wire.open(client)
        request = authorized(client, "POST /v1/commands HTTP/1.1", CREATE)
        sent = len(request) - len(CREATE)
        await wire.send(request[:sent])
        answered = asyncio.ensure_future(wire.error())

        while not answered.done():
            assert sent < len(request) - 1, "the body was taken to its end"
            await wire.send(request[sent : sent + 1])
            sent += 1
            await asyncio.wait((answered,), timeout=0.05)

        assert await answered == (408, "REQUEST_TIMEOUT")
        await wire.close()


async def test_an_idle_connection_is_closed_after_its_time(serve: Serve) -> None:
    async with serve(http={"keep_alive_seconds": 0.1}) as client:
        wire = await (await Wire.open(client)).send(f"GET /healthz HTTP/1.1\r\n{HOST}\r\n")

        assert (await wire.answer())[0] == 200
        assert await wire.is_closed()
        await wire.close()


async def test_a_client_that_reads_nothing_is_cut_off(serve: Serve) -> None:
    async with serve(http={"write_seconds": 0.1}) as client:
        command_id = await client.create(params=inline(b"x" * 8_000_000))
        (lease,) = await client.lease()
        url = lease["envelope"]["params"]["storageGetRequest"]["backend"]["url"]
        path = url.removeprefix(client.server.url)
        wire = await Wire.open(client)
        wire.writer.transport.pause_reading()

        await wire.send(f"GET {path} HTTP/1.1\r\n{HOST}\r\n")
        await connections_are(client, 1)

        await wire.close()
        assert (await client.status(command_id))["state"] == "DISPATCHED"


async def connections_are(client: Client, count: int) -> None:
    """Until the server holds that many connections."""
    await until(lambda: client.server.http.open_connections == count)


# connections


POLL = json.dumps({"deploymentId": OWN, "maxLeases": 1, "waitSeconds": 60}).encode()


async def poll(client: Client) -> Wire:
    """A connection that waits for work."""
    wire = await Wire.open(client)
    waiting = client.server.parts.services.announcements.work.count
    await wire.send(authorized(client, "POST /v1/commands/leases HTTP/1.1", POLL))
    await until(lambda: client.server.parts.services.announcements.work.count > waiting)
    return wire


async def test_connections_past_the_limit_get_a_503_while_none_is_idle(serve: Serve) -> None:
    async with serve(http={"max_connections": 2}) as client:
        first, second = await poll(client), await poll(client)
        third = await Wire.open(client)

        await third.send(f"GET /healthz HTTP/1.1\r\n{HOST}\r\n")

        assert await third.error() == (503, "UNAVAILABLE")
        assert await third.is_closed()
        for wire in (first, second, third):
            await wire.close()
        await connections_are(client, 0)
        assert (await client.call("GET", "/healthz")).status == 200


async def test_the_oldest_idle_connection_is_closed_for_one_past_the_limit(serve: Serve) -> None:
    async with serve(http={"max_connections": 3}) as client:
        busy = await poll(client)
        idle = await Wire.open(client)
        await connections_are(client, 2)
        young = await Wire.open(client)
        await connections_are(client, 3)

        newest = await Wire.open(client)

        assert await idle.is_closed()
        for wire in (young, newest):
            await wire.send(f"GET /healthz HTTP/1.1\r\n{HOST}\r\n")
            assert (await wire.answer())[0] == 200
        for wire in (busy, idle, young, newest):
            await wire.close()


STALLED = (
    f"POST /v1/agents/tokens HTTP/1.1\r\n{HOST}Content-Length: 500\r\nExpect: 100-continue\r\n\r\n"
)


async def keep_waiting(client: Client) -> Wire:
    """A connection without a credential that makes the server wait for a body."""
    wire = await (await Wire.open(client)).send(STALLED)
    assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    return wire


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_address"])
async def test_strangers_who_keep_the_server_waiting_lock_out_no_agent(
    serve: Serve, limit: str
) -> None:
    async with serve(http={limit: 3}) as client:
        wires = [await keep_waiting(client) for _ in range(3)]

        agent = await poll(client)
        wires += [await keep_waiting(client) for _ in range(6)]
        (command_id,) = [await client.create()]

        (lease,) = json.loads((await agent.answer())[2])["leases"]
        assert lease["envelope"]["commandId"] == command_id
        assert client.server.http.open_connections <= 3
        assert client.server.http.unanswered == 0
        for wire in (*wires, agent):
            await wire.close()


async def test_one_token_keeps_no_more_connections_than_it_may_have_requests(
    serve: Serve,
) -> None:
    async with serve(http={"max_connections": 4, "max_requests_per_token": 2}) as client:
        made = new_token(Scope.SENDER, None, datetime.now(UTC))
        await client.server.parts.store.put_token(made.stored, made.secret)
        hoarder = Client(client.server, client.session, made.text)
        wires: list[Wire] = []
        for _ in range(4):
            wire = await (await Wire.open(client)).send(
                authorized(hoarder, "GET /v1/commands HTTP/1.1") + STALLED.encode()
            )
            assert (await wire.answer())[0] == 200
            wires.append(wire)

        agent = await poll(client)
        command_id = await client.create()

        (lease,) = json.loads((await agent.answer())[2])["leases"]
        assert lease["envelope"]["commandId"] == command_id
        for wire in (*wires, agent):
            await wire.close()


async def test_one_address_has_a_limit_of_its_own(serve: Serve) -> None:
    async with serve(http={"max_connections_per_address": 2}) as client:
        first, second = await poll(client), await poll(client)
        third = await Wire.open(client)

        assert await third.error() == (503, "UNAVAILABLE")
        for wire in (first, second, third):
            await wire.close()
        await connections_are(client, 0)
        assert (await client.call("GET", "/healthz")).status == 200


async def test_behind_a_proxy_connections_of_one_address_are_not_counted(serve: Serve) -> None:
    limits = {"max_connections_per_address": 1, "trusted_proxies": ["127.0.0.0/8"]}
    async with serve(http=limits) as client:
        polls = [await poll(client) for _ in range(3)]

        assert (await client.call("GET", "/healthz")).status == 200
        for wire in polls:
            await wire.close()


async def test_requests_may_be_pipelined(client: Client) -> None:
    wire = await Wire.open(client)

    await wire.send(authorized(client, "POST /v1/commands HTTP/1.1", CREATE) * 50)

    answers = [await wire.answer() for _ in range(50)]
    assert {status for status, _, _ in answers} == {200}
    assert len({json.loads(body)["commandId"] for _, _, body in answers}) == 50
    await wire.close()


async def test_an_error_before_the_body_is_read_leaves_the_connection_usable(
    client: Client,
) -> None:
    wire = await Wire.open(client)

    await wire.send(f"POST /v1/commands HTTP/1.1\r\n{HOST}Content-Length: 5\r\n\r\nabcde")
    assert await wire.error() == (401, "UNAUTHORIZED")
    await wire.send(f"GET /healthz HTTP/1.1\r\n{HOST}\r\n")

    assert (await wire.answer())[0] == 200
    await wire.close()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_connection_is_closed_when_the_client_wants_it_closed(
    client: Client, version: str
) -> None:
    wire = await Wire.open(client)

    await wire.send(f"GET /healthz HTTP/{version}\r\n{HOST}Connection: close\r\n\r\n")

    assert (await wire.answer())[0] == 200
    assert await wire.is_closed()
    await wire.close()


async def test_the_absolute_form_of_a_target_is_understood(client: Client) -> None:
    wire = await Wire.open(client)

    await wire.send(f"GET http://proxy.example/v1//healthz?x=1 HTTP/1.1\r\n{HOST}\r\n")

    assert (await wire.answer())[0] == 200
    await wire.close()


@pytest.mark.parametrize("head", ["OPTIONS * HTTP/1.1", "CONNECT a.example:80 HTTP/1.1"])
async def test_targets_that_are_no_paths_are_not_found(client: Client, head: str) -> None:
    wire = await (await Wire.open(client)).send(f"{head}\r\n{HOST}\r\n")

    assert await wire.error() == (404, "NOT_FOUND")
    await wire.close()


async def test_an_upgrade_is_declined_and_the_request_answered(client: Client) -> None:
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
    wire = await (await Wire.open(client)).send(f"GET /healthz HTTP/1.1\r\n{HOST}{upgrade}\r\n")

    assert (await wire.answer())[0] == 200
    await wire.close()


async def test_head_has_the_headers_of_get_and_no_body(client: Client) -> None:
    wire = await Wire.open(client)

    await wire.send(f"HEAD /healthz HTTP/1.1\r\n{HOST}\r\n")
    head = await wire.reader.readuntil(b"\r\n\r\n")
    await wire.send(f"GET /healthz HTTP/1.1\r\n{HOST}\r\n")

    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert (await wire.answer())[2] == b'{"status":"ok"}'
    await wire.close()


# Expect: 100-continue


async def test_a_client_that_waits_for_leave_gets_it_when_its_body_is_wanted(
    client: Client,
) -> None:
    head, _, body = authorized(client, "POST /v1/commands HTTP/1.1", CREATE).partition(b"\r\n\r\n")
    wire = await (await Wire.open(client)).send(head + b"\r\nExpect: 100-continue\r\n\r\n")

    assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await wire.send(body)

    assert (await wire.answer())[0] == 200
    await wire.close()


@pytest.mark.parametrize(
    ("path", "token", "length", "expected"),
    [
        ("/v1/commands", False, 5, (401, "UNAUTHORIZED")),
        ("/v1/commands", True, 40 << 20, (413, "PAYLOAD_TOO_LARGE")),
        ("/v1/nothing", True, 5, (404, "NOT_FOUND")),
    ],
)
async def test_a_client_that_waits_for_leave_is_refused_before_it_sends(
    client: Client, path: str, token: bool, length: int, expected: tuple[int, str]
) -> None:
    authorization = f"Authorization: Bearer {client.token}\r\n" if token else ""
    wire = await Wire.open(client)

    await wire.send(
        f"POST {path} HTTP/1.1\r\n{HOST}{authorization}"
        f"Content-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
    )

    assert await wire.error() == expected
    await wire.close()


async def test_an_expectation_that_is_not_known_is_refused(client: Client) -> None:
    wire = await Wire.open(client)
    head = authorized(client, "POST /v1/commands HTTP/1.1", CREATE).partition(b"\r\n\r\n")[0]

    await wire.send(head + b"\r\nExpect: miracles\r\n\r\n")

    assert (await wire.error())[0] == 400
    await wire.close()


async def test_what_follows_a_body_is_judged_as_the_next_request(client: Client) -> None:
    wire = await Wire.open(client)

    await wire.send(authorized(client, "GET /v1/commands HTTP/1.1", CREATE) + b"surplus\r\n\r\n")

    assert await wire.error() == (400, "BAD_REQUEST")
    assert await wire.is_closed()
    await wire.close()


async def test_a_body_that_breaks_off_stores_nothing(client: Client) -> None:
    wire = await Wire.open(client)

    await wire.send(authorized(client, "POST /v1/commands HTTP/1.1", CREATE)[:-1])
    await wire.close()

    await connections_are(client, 0)
    assert (await client.call("GET", "/v1/commands")).json == {"commands": []}


# what goes wrong inside


async def test_an_unexpected_failure_is_a_500_without_details(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(client.server.parts.store, "list", failing)

    answer = await client.call("GET", "/v1/commands")

    assert (answer.status, answer.code) == (500, "COMMANDS_ERROR")
    assert b"secret" not in answer.body


async def test_a_database_that_is_away_is_a_503_that_says_when_to_come_back(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("the database is away")

    monkeypatch.setattr(client.server.parts.store, "list", failing)
    monkeypatch.setattr(client.server.parts.store, "check", failing)

    answer = await client.call("GET", "/v1/commands")
    ready = await client.call("GET", "/readyz")
    alive = await client.call("GET", "/healthz")

    assert (answer.status, answer.code) == (503, "UNAVAILABLE")
    assert answer.headers["Retry-After"] == "1"
    assert (ready.status, ready.code) == (503, "UNAVAILABLE")
    assert alive.status == 200
