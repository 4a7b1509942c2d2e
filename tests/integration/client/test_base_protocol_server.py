"""The fake of a public server does what reference and protocol say of it."""

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any
from urllib.parse import urljoin

import aiohttp
import pytest

from arc_protocol.codec import decode
from arc_protocol.messages.commands import CommandStatus, CreateCommandResponse
from arc_protocol.messages.leases import LeaseResponse
from arc_protocol.urls import resolve
from tests.support.base_protocol_commands import Era
from tests.support.base_protocol_server import BaseProtocolServer

TARGET = {"resourceId": "default", "resourceType": "daemon"}
BEARER = {"Authorization": "Bearer t0ken"}


class Caller:
    """A client that sends what it is told and gives back status and body."""

    def __init__(self, server: BaseProtocolServer, session: aiohttp.ClientSession) -> None:
        self.server, self.session = server, session

    async def __call__(
        self, method: str, url: str, body: Any = None, **options: Any
    ) -> tuple[int, bytes]:
        options.setdefault("headers", BEARER)
        if body is not None:
            options["json"] = body
        url = url if "://" in url else self.server.url + url
        async with self.session.request(method, url, **options) as answer:
            return answer.status, await answer.read()

    async def lease(self, **fields: Any) -> list[dict[str, Any]]:
        request = {"deploymentId": "dep", "target": TARGET, **fields}
        status, body = await self("POST", "/commands/leases", request)
        assert status == 200
        decode(body, LeaseResponse)
        return json.loads(body)["leases"]

    async def status(self, command_id: str) -> CommandStatus:
        status, body = await self("GET", f"/commands/{command_id}")
        assert status == 200
        return decode(body, CommandStatus)


@pytest.fixture(params=[1, 3])
def era(request: pytest.FixtureRequest) -> Era:
    return request.param


@pytest.fixture
async def call(era: Era) -> AsyncIterator[Caller]:
    async with BaseProtocolServer(era, token="t0ken") as server, aiohttp.ClientSession() as session:
        yield Caller(server, session)


async def test_a_command_goes_out_and_its_result_comes_back(call: Caller, era: Era) -> None:
    params = {"mode": "inline", "inlineBase64": "e30="}
    create = {"deploymentId": "dep", "command": "c", "params": params}
    status, body = await call("POST", "/commands", create)
    created = decode(body, CreateCommandResponse)
    assert (status, created.state, created.next) == (200, "PENDING", "poll")

    (lease,) = await call.lease()
    url = resolve(
        f"{call.server.url}/commands/leases",
        lease["envelope"]["responseHandling"]["submitResponseUrl"],
    )
    response = {"status": "success", "response": {"mode": "inline", "inlineBase64": "MQ=="}}
    assert await call("PUT", url, response, headers={}) == (200, b"")

    seen = await call.status(created.command_id)
    assert (seen.state, seen.attempt) == ("SUCCEEDED", 1)
    assert (seen.target is None) == (era == 1)
    assert call.server.state.result(created.command_id) == b"1"
    assert [request.route for request in call.server.requests] == [
        *("create", "lease", "response", "status")
    ]
    assert "authorization" not in call.server.seen("response")[0].headers


async def test_large_bodies_go_through_signed_urls_without_a_token(call: Caller) -> None:
    request = {
        "deploymentId": "dep",
        "command": "c",
        "params": {"mode": "storage", "size": 200_000},
    }
    _, body = await call("POST", "/commands", request)
    created = decode(body, CreateCommandResponse)
    assert (created.state, created.next) == ("PENDING_UPLOAD", "upload")
    assert created.storage_upload is not None
    put = created.storage_upload.put_request.backend
    data = bytes(200_000)
    assert (await call("PUT", put.url, data=data, headers=put.headers))[0] == 200
    assert (await call("PUT", put.url, data=data))[0] == 400
    assert (await call("PUT", put.url + "0", data=data, headers={}))[0] == 403
    path = f"/commands/{created.command_id}/upload-complete"
    assert (await call("POST", path, {"size": 200_000}))[0] == 200
    assert (await call("POST", path, {"size": 200_000}))[0] == 400

    (lease,) = await call.lease()
    spec = lease["envelope"]["params"]
    assert spec["size"] == 200_000
    leases = f"{call.server.url}/commands/leases"
    get = resolve(leases, spec["storageGetRequest"]["backend"]["url"])
    assert await call("GET", get, headers={}) == (200, data)

    handling = lease["envelope"]["responseHandling"]
    upload = resolve(leases, handling["storageUploadRequest"]["backend"]["url"])
    assert (await call("PUT", upload, data=b"x" * 300_000, headers={}))[0] == 200
    done = {"mode": "storage", "size": 300_000, "storagePutUsed": True}
    submit = resolve(leases, handling["submitResponseUrl"])
    await call("PUT", submit, {"status": "success", "response": done}, headers={})
    seen = await call.status(created.command_id)
    result = seen.response.response.storage_get_request.backend.url
    assert (await call("GET", result, headers={}))[1] == b"x" * 300_000


async def test_1_x_gives_absolute_urls_and_no_target_and_3_x_relative_ones_and_a_target(
    call: Caller, era: Era
) -> None:
    call.server.send("c", bytes(200_000))

    (lease,) = await call.lease()

    envelope = lease["envelope"]
    urls = [
        envelope["responseHandling"]["submitResponseUrl"],
        envelope["responseHandling"]["storageUploadRequest"]["backend"]["url"],
        envelope["params"]["storageGetRequest"]["backend"]["url"],
    ]
    assert all(url.startswith(call.server.origin) for url in urls) == (era == 1)
    assert any("://" in url for url in urls) == (era == 1)
    assert ("target" in envelope) == (era == 3)
    joined = [urljoin(f"{call.server.url}/commands/leases", url) for url in urls]
    assert all(url.startswith(f"{call.server.url}/") for url in joined)


async def test_a_lease_without_target_is_served_by_1_x_and_refused_by_3_x(
    call: Caller, era: Era
) -> None:
    call.server.send("c")

    status, body = await call("POST", "/commands/leases", {"deploymentId": "dep"})

    assert status == (200 if era == 1 else 422)
    assert (b"leaseId" in body) == (era == 1)


async def test_our_additions_are_ignored_or_unknown(call: Caller) -> None:
    command_id = call.server.send("c")

    (lease,) = await call.lease(waitSeconds=60, agentId="a", maxLeases=5)
    assert await call.lease(waitSeconds=60) == []

    assert set(lease) == {"leaseId", "leaseExpiresAt", "commandId", "attempt", "envelope"}
    for method, path, expected in (
        ("POST", "/commands/leases/renew", 404),
        ("POST", f"/commands/{command_id}/cancel", 404),
        ("PUT", "/agents/a", 404),
        ("GET", "/agents", 404),
        ("GET", "/commands", 405),
        ("GET", "/commands/leases", 405),
    ):
        assert await call(method, path, {}) == (expected, b"")
    status, body = await call("GET", f"/commands/{command_id}?waitSeconds=60")
    assert (status, json.loads(body)["state"]) == (200, "DISPATCHED")


async def test_a_lapsed_lease_is_given_again_and_3_x_counts_it(call: Caller, era: Era) -> None:
    command_id = call.server.send("c")
    (first,) = await call.lease(leaseSeconds=60)
    assert await call.lease() == []

    call.server.state.advance(60)
    (second,) = await call.lease()

    assert second["leaseId"] != first["leaseId"]
    assert second["attempt"] == (2 if era == 3 else 1)
    assert call.server.command(command_id).holders == [first["leaseId"], second["leaseId"]]
    assert (await call("POST", f"/commands/leases/{first['leaseId']}/release"))[0] == 404


async def test_a_release_counts_and_a_response_after_it_is_refused(call: Caller) -> None:
    command_id = call.server.send("c")
    (lease,) = await call.lease()

    assert await call("POST", f"/commands/leases/{lease['leaseId']}/release") == (200, b"")

    error = {"status": "error", "code": "E", "message": "m"}
    assert (await call("PUT", f"/commands/{command_id}/response", error))[0] == 400
    (again,) = await call.lease()
    assert again["attempt"] == 2


async def test_the_first_response_counts_whoever_gives_it(call: Caller) -> None:
    command_id = call.server.send("c")
    await call.lease()
    path = f"/commands/{command_id}/response"

    first = await call("PUT", path, {"status": "error", "code": "FIRST", "message": ""})
    second = await call("PUT", path, {"status": "error", "code": "SECOND", "message": ""})

    assert first == second == (200, b"")
    seen = await call.status(command_id)
    assert (seen.state, seen.response.code) == ("FAILED", "FIRST")


async def test_a_deadline_acts_when_somebody_looks(call: Caller) -> None:
    command_id = call.server.send("c", deadline="2999-01-01T00:00:00Z")
    assert (await call.status(command_id)).state == "PENDING"
    call.server.command(command_id).deadline = call.server.state.now()

    assert await call.lease() == []

    assert (await call.status(command_id)).state == "EXPIRED"
    params = {"mode": "inline", "inlineBase64": ""}
    late = {
        "deploymentId": "dep",
        "command": "c",
        "params": params,
        "deadline": "2020-01-01T00:00:00Z",
    }
    assert (await call("POST", "/commands", late))[0] == 400


async def test_a_repeated_key_gets_the_first_command_and_1_x_ignores_whose_it_is(
    call: Caller, era: Era
) -> None:
    first = call.server.send("c", idempotencyKey="k")

    assert call.server.send("c", idempotencyKey="k") == first
    assert (call.server.send("other", idempotencyKey="k") == first) == (era == 1)
    assert (call.server.send("c", deployment_id="d2", idempotencyKey="k") == first) == (era == 1)


async def test_a_wrong_token_is_refused_even_beside_a_signature(call: Caller) -> None:
    call.server.send("c")
    (lease,) = await call.lease()
    url = urljoin(
        f"{call.server.url}/commands/leases",
        lease["envelope"]["responseHandling"]["submitResponseUrl"],
    )
    error = {"status": "error", "code": "E", "message": "m"}
    wrong = {"Authorization": "Bearer wrong"}

    for method, target, body, headers in (
        ("POST", "/commands/leases", {"deploymentId": "dep", "target": TARGET}, wrong),
        ("POST", "/commands/leases", {"deploymentId": "dep", "target": TARGET}, {}),
        ("PUT", url, error, wrong),
        ("PUT", url.partition("?")[0], error, {}),
        ("PUT", url.replace("response_token=", "response_token=0"), error, {}),
    ):
        status, answer = await call(method, target, body, headers=headers)
        assert (status, json.loads(answer)["code"]) == (401, "UNAUTHORIZED")
    assert (await call("PUT", url, error, headers={}))[0] == 200


async def test_bad_requests_are_answered_in_plain_text(call: Caller) -> None:
    for body, headers, expected in (
        (b"{", {"Content-Type": "application/json"}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {"Content-Type": "application/json"}, 422),
        (BytesIO(bytes(2 * 1024 * 1024 + 1)), {"Content-Type": "application/json"}, 413),
    ):
        status, answer = await call("POST", "/commands/leases", data=body, headers=headers)
        assert status == expected
        assert not answer.startswith(b"{")


async def test_planned_faults_happen_once_each_in_their_order(call: Caller) -> None:
    command_id = call.server.send("c")
    call.server.planned["lease"] = [503, "drop", "lose"]
    request = {"deploymentId": "dep", "target": TARGET}

    assert (await call("POST", "/commands/leases", request))[0] == 503
    for holders in (0, 1):
        with pytest.raises(aiohttp.ClientError):
            await call("POST", "/commands/leases", request)
        assert len(call.server.command(command_id).holders) == holders
    assert await call.lease() == []
    assert len(call.server.seen("lease")) == 4


async def test_waiting_ends_as_soon_as_a_request_made_it_true(call: Caller) -> None:
    command_id = call.server.send("c")
    waiting = asyncio.create_task(
        call.server.until(lambda: call.server.command(command_id).state == "DISPATCHED")
    )
    await call.lease()

    await asyncio.wait_for(waiting, 5)

    with pytest.raises(TimeoutError):
        await call.server.until(lambda: False, seconds=0.01)


async def test_behind_a_proxy_with_a_path_only_relative_urls_lead_back() -> None:
    async with (
        BaseProtocolServer(3, behind="/edge/t") as server,
        aiohttp.ClientSession() as session,
    ):
        command_id = server.send("c")
        call = Caller(server, session)
        (lease,) = await call.lease()
        reference = lease["envelope"]["responseHandling"]["submitResponseUrl"]
        url = resolve(f"{server.url}/commands/leases", reference)

        assert url.startswith(f"{server.origin}/edge/t/v1/commands/{command_id}/response?")
        error = {"status": "error", "code": "E", "message": "m"}
        assert (await call("PUT", url, error, headers={}))[0] == 200


async def test_3_x_knows_its_target_only() -> None:
    target = {"resourceId": "vault", "resourceType": "container"}
    async with BaseProtocolServer(3, target=target) as server, aiohttp.ClientSession() as session:
        call = Caller(server, session)
        server.send("c", targetResourceId="vault")
        params = {"mode": "inline", "inlineBase64": ""}
        request = {"deploymentId": "dep", "command": "c", "params": params}

        for name, expected in (("other", 404), ("", 404), ("a:b", 400)):
            status, _ = await call("POST", "/commands", {**request, "targetResourceId": name})
            assert status == expected
        assert await call.lease() == []
        wrong = {"deploymentId": "dep", "target": {**target, "resourceType": "daemon"}}
        assert (await call("POST", "/commands/leases", wrong))[0] == 500
        assert len(await call.lease(target=target)) == 1


async def test_the_payload_of_a_command_can_be_read(call: Caller) -> None:
    command_id = call.server.send("c", b"abc")

    status, body = await call("GET", f"/commands/{command_id}/payload")

    assert status == 200
    assert b64decode(json.loads(body)["params"]["inlineBase64"]) == b"abc"
    assert (await call("GET", "/commands/none/payload"))[0] == 404
