"""A server on a disk that fills up: what it refuses, what goes on, and that it recovers."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from arc_server.app import all_routes
from arc_server.config.sections import DiskSection, ServerConfig
from arc_server.disk_room import DiskLevel, Measured
from arc_server.http.disk_rules import REFUSED_AT
from tests.support.running_server import Client, Serve, inline, success

DISK = DiskSection(
    soft_free_bytes=1 << 30,
    hard_free_bytes=100 << 20,
    critical_free_bytes=10 << 20,
    ballast_bytes=0,
    check_seconds=60,  # a test looks itself
)
FREE = {
    DiskLevel.OK: 1 << 40,
    DiskLevel.SOFT: 500 << 20,
    DiskLevel.HARD: 50 << 20,
    DiskLevel.CRITICAL: 1 << 20,
}
LARGE = b"x" * 200_000


class Gauge:
    """Says how full the disk is, as the test has it."""

    def __init__(self) -> None:
        self.level = DiskLevel.OK

    def __call__(self, _: Path) -> Measured:
        return Measured(FREE[self.level], 1 << 41)


async def fill(client: Client, gauge: Gauge, level: DiskLevel) -> None:
    gauge.level = level
    room = client.server.parts.room
    await room.look()
    assert room.level is level


async def upload(client: Client, url: str, data: bytes) -> int:
    return (await client.call("PUT", url, data=data, token="")).status


def stored(size: int) -> dict[str, Any]:
    return {"mode": "storage", "size": size}


async def create(client: Client, **fields: Any) -> Any:
    body = {"deploymentId": "own", "command": "report", "params": inline(b"{}")} | fields
    return await client.call("POST", "/v1/commands", body)


async def test_from_the_soft_mark_on_no_params_are_uploaded(serve: Serve) -> None:
    gauge = Gauge()
    async with serve(disk=DISK, gauge=gauge) as client:
        before = (await create(client, params=stored(len(LARGE)))).json
        url = before["storageUpload"]["putRequest"]["backend"]["url"]
        await fill(client, gauge, DiskLevel.SOFT)

        refused = await create(client, params=stored(len(LARGE)))
        inlined = await create(client, params=inline(LARGE))

        assert (refused.status, refused.code) == (507, "INSUFFICIENT_STORAGE")
        assert refused.json["retryable"]
        assert int(refused.headers["Retry-After"]) > 0
        assert inlined.status == 507
        assert await upload(client, url, LARGE) == 507
        assert (await create(client)).status == 200
        ready = await client.call("GET", "/readyz")
        assert (ready.status, ready.json) == (200, {"status": "ready", "disk": "soft"})

        await fill(client, gauge, DiskLevel.OK)
        assert await upload(client, url, LARGE) == 200
        assert (await client.call("GET", "/readyz")).json == {"status": "ready"}


async def test_from_the_hard_mark_on_what_is_there_goes_on_and_nothing_new_begins(
    serve: Serve,
) -> None:
    gauge = Gauge()
    async with serve(disk=DISK, gauge=gauge) as client:
        small, large = [await client.create() for _ in range(2)]
        await fill(client, gauge, DiskLevel.HARD)

        refused = await create(client)
        leases = {lease["commandId"]: lease for lease in await client.lease()}

        assert (refused.status, refused.code) == (507, "INSUFFICIENT_STORAGE")
        assert set(leases) == {small, large}
        body = {"leaseIds": [lease["leaseId"] for lease in leases.values()]}
        renewed = await client.call("POST", "/v1/commands/leases/renew", body)
        assert renewed.status == 200
        assert (await respond(client, small, success())).status == 200
        url = leases[large]["envelope"]["responseHandling"]["storageUploadRequest"]
        assert await upload(client, url["backend"]["url"], LARGE) == 200
        response = {
            "status": "success",
            "response": stored(len(LARGE)) | {"storagePutUsed": True},
        }
        assert (await respond(client, large, response)).status == 200
        assert (await client.status(large))["state"] == "SUCCEEDED"
        assert (await client.call("GET", "/readyz")).json["disk"] == "hard"


async def respond(client: Client, command_id: str, response: Any) -> Any:
    return await client.call("PUT", f"/v1/commands/{command_id}/response", response)


async def test_at_the_critical_mark_the_server_reads_renews_releases_and_cancels(
    serve: Serve,
) -> None:
    gauge = Gauge()
    async with serve(disk=DISK, gauge=gauge) as client:
        held, waiting = await client.create(), await client.create()
        [lease] = await client.lease(maxLeases=1)
        await fill(client, gauge, DiskLevel.CRITICAL)

        for refused in (
            await create(client),
            await client.call("POST", "/v1/commands/leases", {"deploymentId": "own"}),
            await respond(client, held, success()),
            await client.call("GET", "/readyz"),
        ):
            assert (refused.status, refused.code) == (507, "INSUFFICIENT_STORAGE")
        assert (await client.status(held))["state"] == "DISPATCHED"
        body = {"leaseIds": [lease["leaseId"]]}
        renewed = await client.call("POST", "/v1/commands/leases/renew", body)
        assert renewed.status == 200
        cancelled = await client.call("POST", f"/v1/commands/{waiting}/cancel")
        assert cancelled.json["state"] == "FAILED"

        await fill(client, gauge, DiskLevel.OK)
        assert (await respond(client, held, success())).status == 200


def test_every_route_that_writes_says_when_it_is_refused() -> None:
    nothing: Any = MagicMock()
    writing = {
        (route.method, route.path)
        for route in all_routes(nothing, ServerConfig())
        if route.method != "GET"
    }

    assert set(REFUSED_AT) == writing


@pytest.mark.parametrize("chunked", [False, True])
async def test_room_is_set_aside_before_an_upload_and_while_it_goes_on(
    serve: Serve, chunked: bool
) -> None:
    free = DISK.soft_free_bytes + (3 << 20)
    async with serve(disk=DISK, gauge=lambda _: Measured(free, 1 << 41)) as client:
        created = await create(client, params={"mode": "storage"})
        url = created.json["storageUpload"]["putRequest"]["backend"]["url"]
        data = b"x" * (4 << 20)

        async def parts() -> Any:
            for start in range(0, len(data), 1 << 18):
                yield data[start : start + (1 << 18)]

        refused = await client.call("PUT", url, data=parts() if chunked else data, token="")
        await client.server.parts.room.look()
        taken = await client.call("PUT", url, data=data[: 1 << 20], token="")

        assert (refused.status, refused.code) == (507, "INSUFFICIENT_STORAGE")
        assert taken.status == 200
        assert not list((client.server.parts.blobs.root / ".incoming").iterdir())
