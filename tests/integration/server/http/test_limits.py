"""Limits on what one client takes of the server: bodies, headers, requests, answers."""

from __future__ import annotations

import asyncio
import gc
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from arc_protocol.errors import StoreUnavailable
from arc_server.auth.tokens import Scope, new_token
from arc_server.config.sections import QuotaSection
from arc_server.http.routes import agents
from tests.support.running_server import OTHER, OWN, Client, Serve, inline
from tests.support.waiting import until
from tests.support.wire import HOST, Wire, authorized

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REGISTRATION = {"deploymentId": OWN, "version": "1", "hostname": "h", "handlers": []}
SMALL = [
    ("POST", "/v1/commands/leases"),
    ("POST", "/v1/commands/leases/renew"),
    ("POST", "/v1/commands/leases/lease_x/release"),
    ("POST", "/v1/commands/cmd_x/upload-complete"),
]


@pytest.mark.parametrize(("method", "path"), SMALL)
async def test_a_request_that_carries_no_command_is_small(
    client: Client, method: str, path: str
) -> None:
    answer = await client.call(method, path, data=b" " * 65_537)

    assert (answer.status, answer.code) == (413, "PAYLOAD_TOO_LARGE")
    assert answer.json["context"] == {"limit": 65_536}


async def test_a_registration_is_at_most_two_megabytes(client: Client) -> None:
    answer = await client.call("PUT", "/v1/agents/a", data=b" " * (2 << 20) + b"{}")

    assert (answer.status, answer.code) == (413, "PAYLOAD_TOO_LARGE")


NESTED = b"[" + b",".join([b"[]"] * 600_000) + b"]"


async def test_a_registration_of_too_many_values_is_refused_undecoded(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "decode", lambda *_: pytest.fail("it is decoded"))
    handler = b'{"name":"report","paramsSchema":{"enum":%s}}' % NESTED
    head = json.dumps(REGISTRATION).encode()

    answer = await client.call(
        "PUT", "/v1/agents/a", data=head.replace(b'"handlers": []', b'"handlers": [%s]' % handler)
    )

    assert (answer.status, answer.code) == (400, "INVALID_COMMAND")
    assert answer.json["context"] == {"field": "handlers"}


async def test_what_a_create_does_not_take_is_refused_undecoded(client: Client) -> None:
    body = {"deploymentId": OWN, "command": "report", "params": inline(b"{}")}
    data = json.dumps(body | {"operationResultContract": 0}).encode()
    begun = gc.get_stats()[0]["collections"]

    answer = await client.call(
        "POST", "/v1/commands", data=data.replace(b": 0}", b": %s}" % NESTED)
    )

    assert (answer.status, answer.code) == (400, "INVALID_COMMAND")
    assert answer.json["context"] == {"field": "operationResultContract"}
    assert gc.get_stats()[0]["collections"] - begun < 200, "600,000 lists were made"


async def test_the_description_of_a_handler_has_a_longest(client: Client) -> None:
    handler = {"name": "report", "description": "x" * 4_001}

    answer = await client.call("PUT", "/v1/agents/a", REGISTRATION | {"handlers": [handler]})

    assert (answer.status, answer.code) == (400, "INVALID_COMMAND")
    assert answer.json["message"].startswith("handlers[0].description:")


async def test_bodies_that_stall_hold_no_more_than_their_memory(serve: Serve) -> None:
    async with serve(http={"body_memory_bytes": 4 << 20}) as client:
        head = authorized(client, "POST /v1/commands HTTP/1.1", b"")
        head = head.replace(b"Content-Length: 0", b"Content-Length: 30000000")
        stalled = await Wire.open(client)

        await stalled.send(head + b" " * (3 << 20))

        assert await stalled.error() == (503, "UNAVAILABLE")
        params = inline(b"x" * 700_000)
        assert await client.create(params=params), "the memory of the refused body is given back"
        await stalled.close()


async def test_the_memory_of_a_body_is_given_back_when_its_client_goes(serve: Serve) -> None:
    async with serve(http={"body_memory_bytes": 4 << 20}) as client:
        for _ in range(4):
            wire = await Wire.open(client)
            head = authorized(client, "POST /v1/commands HTTP/1.1", b"")
            head = head.replace(b"Content-Length: 0", b"Content-Length: 30000000")
            await wire.send(head + b" " * (1 << 20))
            await until(lambda: client.server.http.open_connections == 1)
            await wire.close()
            await until(lambda: client.server.http.open_connections == 0)
            await until(lambda: client.server.http.unanswered == 0)

        assert await client.create(params=inline(b"x" * 1_000_000))


async def test_headers_have_a_most_together(client: Client) -> None:
    wire = await Wire.open(client)

    await wire.send(f"GET /healthz HTTP/1.1\r\n{HOST}")
    for number in range(9):
        await wire.send(f"X-{number}: {'x' * 8000}\r\n")

    assert await wire.error() == (431, "HEADERS_TOO_LARGE")
    await wire.close()


async def test_a_second_authorization_header_is_refused(client: Client) -> None:
    wire = await Wire.open(client)
    request = authorized(client, "GET /v1/commands HTTP/1.1")

    await wire.send(request.replace(b"\r\n\r\n", b"\r\nAuthorization: Bearer other\r\n\r\n"))

    assert await wire.error() == (400, "BAD_REQUEST")
    await wire.close()


async def test_few_requests_are_parsed_behind_one_that_waits(client: Client) -> None:
    wire = await Wire.open(client)
    poll = json.dumps({"deploymentId": OWN, "waitSeconds": 60}).encode()
    await wire.send(authorized(client, "POST /v1/commands/leases HTTP/1.1", poll))
    await until(lambda: client.server.parts.services.announcements.work.count == 1)
    padding = f"X-Padding: {'x' * 8000}\r\n" * 5
    request = f"GET /healthz HTTP/1.1\r\n{HOST}{padding}\r\n".encode()

    wire.writer.write(request * 200)
    await asyncio.wait((asyncio.ensure_future(wire.writer.drain()),), timeout=0.2)
    held = sum(request.path == "/healthz" for request in _requests())

    assert held <= 3
    wire.writer.transport.abort()


def _requests() -> list[Any]:
    return [
        thing for thing in gc.get_objects() if type(thing).__name__.endswith("RawRequestMessage")
    ]


async def test_a_token_that_asks_too_often_gets_a_429_and_is_told_when_to_return(
    serve: Serve,
) -> None:
    async with serve(http={"requests_per_second": 2}) as client:
        answers = [await client.call("POST", "/v1/commands/cmd_x/cancel") for _ in range(6)]

        refused = next(answer for answer in answers if answer.status == 429)
        assert refused.code == "RATE_LIMITED"
        assert refused.headers["Retry-After"] == "1"
        assert refused.headers["RateLimit-Policy"] == '"token";q=2;w=1'
        assert refused.headers["RateLimit"] == '"token";r=0;t=1'


async def test_reads_of_a_token_that_asks_too_often_wait_and_are_answered(serve: Serve) -> None:
    async with serve(http={"requests_per_second": 20}) as client:
        command_id = await client.create()

        answers = await asyncio.gather(
            *(client.call("GET", f"/v1/commands/{command_id}") for _ in range(60))
        )

        assert {answer.status for answer in answers} == {200}


@pytest.mark.parametrize("prefix", ["/v1", ""])
async def test_a_read_of_a_status_waits_until_the_database_answers_again(
    client: Client, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    command_id = await client.create()
    store = client.server.parts.store
    get, tries = store.get, 0

    async def get_when_not_busy(which: str) -> Any:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise StoreUnavailable("the database is busy; try again")
        return await get(which)

    monkeypatch.setattr(store, "get", get_when_not_busy)
    answer = await client.call("GET", f"{prefix}/commands/{command_id}")

    assert (answer.status, tries) == (200, 3)


async def test_a_read_of_a_status_waits_beside_as_many_requests_as_a_token_may_have(
    serve: Serve,
) -> None:
    async with serve(http={"max_requests_per_token": 1}) as client:
        command_id = await client.create()
        path = f"/v1/commands/{command_id}"
        waiting = asyncio.ensure_future(client.call("GET", f"{path}?waitSeconds=60"))
        await until(lambda: client.server.parts.services.announcements.results.count == 1)

        assert (await client.call("GET", path)).status == 200
        waiting.cancel()


JUNK = {
    "no token": "",
    "a token of a wrong checksum": "arc_x",
    "a token that was never made": new_token(Scope.ADMIN, None, NOW).text,
    "an access token with a wrong signature": "arc_access_x",
}


@pytest.mark.parametrize("junk", JUNK)
async def test_junk_of_an_address_is_counted_and_no_good_token_is(serve: Serve, junk: str) -> None:
    async with serve(http={"strangers_per_second": 2}) as client:
        flood = [await client.call("GET", "/v1/commands", token=JUNK[junk]) for _ in range(12)]
        good = [await client.call("GET", "/v1/commands") for _ in range(12)]

    refused = flood[-1]
    assert {answer.status for answer in flood} == {401, 429}
    assert (refused.status, refused.code, refused.headers["Retry-After"]) == (
        429,
        "RATE_LIMITED",
        "1",
    )
    assert refused.headers["RateLimit-Policy"] == '"address";q=2;w=1'
    assert {answer.status for answer in good} == {200}


async def test_behind_a_proxy_the_address_that_it_names_counts(serve: Serve) -> None:
    async with serve(http={"strangers_per_second": 2, "trusted_proxies": ["127.0.0.1"]}) as client:

        async def junk(address: str) -> int:
            headers = {"X-Forwarded-For": f"192.0.2.9, {address}"}
            return (await client.call("GET", "/v1/commands", token="x", headers=headers)).status

        flood = [await junk(f"2001:db8:1:2::{number:x}") for number in range(12)]

        assert 429 in flood, "one customer has a /64"
        assert await junk("2001:db8:1:3::1") == 401


async def test_a_token_may_have_so_many_requests_at_a_time(serve: Serve) -> None:
    async with serve(http={"max_requests_per_token": 1}) as client:
        wire = await Wire.open(client)
        poll = json.dumps({"deploymentId": OWN, "waitSeconds": 60}).encode()
        await wire.send(authorized(client, "POST /v1/commands/leases HTTP/1.1", poll))
        await until(lambda: client.server.parts.services.announcements.work.count == 1)

        refused = await client.call("GET", "/v1/commands")
        await wire.close()
        await until(lambda: client.server.parts.services.announcements.work.count == 0)

        assert (refused.status, refused.code) == (429, "RATE_LIMITED")
        assert (await client.call("GET", "/v1/commands")).status == 200


async def test_a_token_registers_so_many_bytes_a_second(serve: Serve) -> None:
    async with serve(http={"registration_bytes_per_second": 100_000}) as client:
        large = REGISTRATION | {"handlers": [{"name": "report", "description": "x" * 4_000}] * 20}

        answers = [await client.call("PUT", "/v1/agents/a", large) for _ in range(6)]
        small = await client.call("PUT", "/v1/agents/a", REGISTRATION)

    assert [answer.status for answer in answers][:2] == [200, 200]
    assert answers[-1].code == "RATE_LIMITED"
    assert small.status == 200


async def test_a_list_of_agents_ends_at_its_size_and_goes_on_behind_it(client: Client) -> None:
    handlers = [{"name": f"h{number}", "description": "x" * 4_000} for number in range(450)]
    for number in range(4):
        answer = await client.call(
            "PUT", f"/v1/agents/a{number}", REGISTRATION | {"handlers": handlers}
        )
        assert answer.status == 200

    pages, cursor = [], ""
    while cursor is not None:
        page = await client.call("GET", f"/v1/agents?cursor={cursor}" if cursor else "/v1/agents")
        assert len(page.body) < (4 + 2) << 20
        pages.append([agent["agentId"] for agent in page.json["agents"]])
        cursor = page.json.get("cursor")

    assert pages == [["a2", "a1", "a0"], ["a3"]]
    bad = [
        await client.call("GET", f"/v1/agents?cursor={text}") for text in ("x", "e30=", "%C3%A9")
    ]
    assert [answer.code for answer in bad] == ["INVALID_COMMAND"] * 3


async def test_a_deployment_has_quotas_of_its_own(serve: Serve) -> None:
    async with serve(quotas=QuotaSection(max_live_commands=2, max_agents=1)) as client:
        for _ in range(2):
            await client.create()
        body = {"deploymentId": OWN, "command": "report", "params": inline(b"{}")}
        full = await client.call("POST", "/v1/commands", body)
        other = await client.call("POST", "/v1/commands", body | {"deploymentId": OTHER})
        agents = [await client.call("PUT", f"/v1/agents/{name}", REGISTRATION) for name in "aab"]

    assert (full.status, full.code, full.json["retryable"]) == (429, "QUOTA_EXCEEDED", True)
    assert full.headers["Retry-After"] == "10"
    assert full.json["context"]["quota"] == "max_live_commands"
    assert full.json["context"]["most"] == 2
    assert other.status == 200
    assert [answer.status for answer in agents] == [200, 200, 429]
    assert agents[2].json["context"]["quota"] == "max_agents"


async def test_large_params_that_a_quota_refuses_leave_no_blob(serve: Serve) -> None:
    async with serve(quotas=QuotaSection(max_live_commands=1)) as client:
        await client.create()
        params = inline(b"x" * 300_000)
        body = {"deploymentId": OWN, "command": "report", "params": params}

        refused = await client.call("POST", "/v1/commands", body)

        assert refused.code == "QUOTA_EXCEEDED"
        root = client.server.parts.blobs.root
        assert not [file for file in root.rglob("*") if file.is_file()]


async def test_an_answer_of_leases_stops_at_its_size(serve: Serve) -> None:
    async with serve() as client:
        ids = [await client.create(params=inline(b"x" * 149_000)) for _ in range(120)]

        first = await client.lease(maxLeases=1000)
        second = await client.lease(maxLeases=1000)
        third = await client.lease(maxLeases=1000)

        leased = [lease["commandId"] for lease in first + second + third]
        assert leased == ids
        assert len(first) == len(second) == (8 << 20) // 149_000
