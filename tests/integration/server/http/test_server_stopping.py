"""A stopping server answers polls, ends requests, and loses nothing that was acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from arc_server.app import RunningServer, serving
from arc_server.config.sections import DiskSection, ServerConfig
from arc_server.http.limits import HttpLimits
from tests.support.running_server import OWN, Client, admin_client, inline
from tests.support.waiting import until


class Stoppable:
    """A server that the test stops when it likes, and a client that outlives it."""

    def __init__(self, config: ServerConfig) -> None:
        self._stop = asyncio.Event()
        self._server: asyncio.Future[RunningServer] = asyncio.get_running_loop().create_future()
        self._life = asyncio.create_task(self._live(config))

    async def _live(self, config: ServerConfig) -> None:
        async with serving(config) as server:
            self._server.set_result(server)
            await self._stop.wait()

    async def server(self) -> RunningServer:
        await asyncio.wait((self._server, self._life), return_when=asyncio.FIRST_COMPLETED)
        return self._server.result()

    def begin_to_stop(self) -> asyncio.Task[None]:
        self._stop.set()
        return self._life


def config(tmp_path: Path, **http: Any) -> ServerConfig:
    return ServerConfig(
        listen="127.0.0.1:0",
        data_dir=tmp_path / "data",
        http=HttpLimits(**http),
        disk=DiskSection(ballast_bytes=0),
    )


@pytest.fixture
async def stoppable(tmp_path: Path) -> AsyncIterator[Stoppable]:
    stoppable = Stoppable(config(tmp_path))
    await stoppable.server()
    yield stoppable
    await stoppable.begin_to_stop()


async def test_waiting_polls_are_answered_empty_at_once(stoppable: Stoppable) -> None:
    async with admin_client(await stoppable.server()) as client:
        command_id = await client.create()
        await client.lease()
        announcements = client.server.parts.services.announcements
        work = asyncio.create_task(client.lease(waitSeconds=60))
        path = f"/v1/commands/{command_id}?waitSeconds=60"
        result = asyncio.create_task(client.call("GET", path))
        await until(lambda: announcements.work.count == 1 and announcements.results.count == 1)

        async with asyncio.timeout(5):
            await stoppable.begin_to_stop()

        assert await work == []
        answer = await result
        assert (answer.status, answer.json["state"]) == (200, "DISPATCHED")
        assert answer.headers["Connection"] == "close"


async def test_idle_connections_are_closed_and_new_ones_refused(stoppable: Stoppable) -> None:
    async with admin_client(await stoppable.server()) as client:
        assert (await client.call("GET", "/healthz")).status == 200

        async with asyncio.timeout(5):
            await stoppable.begin_to_stop()

        with pytest.raises(aiohttp.ClientConnectionError):
            await client.call("GET", "/healthz")


async def test_an_upload_under_way_ends_well(stoppable: Stoppable) -> None:
    async with admin_client(await stoppable.server()) as client:
        body = {"deploymentId": OWN, "command": "big", "params": {"mode": "storage"}}
        created = await client.call("POST", "/v1/commands", body)
        url = created.json["storageUpload"]["putRequest"]["backend"]["url"]
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def chunks() -> AsyncIterator[bytes]:
            yield b"x" * 1000
            begun.set()
            await go_on.wait()
            yield b"y" * 1000

        upload = asyncio.create_task(client.call("PUT", url, data=chunks(), token=""))
        await begun.wait()
        stopped = stoppable.begin_to_stop()
        await until(lambda: client.server.parts.services.announcements.is_closed)
        go_on.set()

        answer = await upload
        await stopped
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
        path = created.json["storageUpload"]["putRequest"]["path"]
        assert (client.server.parts.blobs.root / f"{path}.blob").stat().st_size == 2000


async def test_a_request_that_does_not_end_in_time_is_cut_off(tmp_path: Path) -> None:
    stoppable = Stoppable(config(tmp_path, drain_seconds=0.1))
    async with admin_client(await stoppable.server()) as client:
        body = {"deploymentId": OWN, "command": "big", "params": {"mode": "storage"}}
        created = await client.call("POST", "/v1/commands", body)
        url = created.json["storageUpload"]["putRequest"]["backend"]["url"]
        begun = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            yield b"x" * 1000
            begun.set()
            await asyncio.Event().wait()

        upload = asyncio.create_task(client.call("PUT", url, data=endless(), token=""))
        await begun.wait()
        async with asyncio.timeout(5):
            await stoppable.begin_to_stop()

        with pytest.raises(aiohttp.ClientError):
            await upload


async def test_nothing_acknowledged_is_missing_after_a_stop_under_load(tmp_path: Path) -> None:
    stoppable = Stoppable(config(tmp_path))
    created: list[str] = []
    finished: list[str] = []

    async def send(client: Client) -> None:
        while True:
            created.append(await client.create())

    async def hold(client: Client) -> None:
        while True:
            for lease in await client.lease(waitSeconds=10):
                url = lease["envelope"]["responseHandling"]["submitResponseUrl"]
                response = {"status": "success", "response": inline(lease["commandId"].encode())}
                answer = await client.call("PUT", url, response, token="")
                assert answer.status == 200
                finished.append(lease["commandId"])

    async with admin_client(await stoppable.server()) as client:
        load = [asyncio.create_task(send(client)) for _ in range(8)]
        load += [asyncio.create_task(hold(client)) for _ in range(4)]
        await until(lambda: len(finished) > 50)
        await stoppable.begin_to_stop()
        ends = await asyncio.gather(*load, return_exceptions=True)
        assert {type(end) for end in ends} <= {
            aiohttp.ClientConnectorError,
            aiohttp.ServerDisconnectedError,
            aiohttp.ClientOSError,
        }, ends

    again = Stoppable(config(tmp_path))
    async with admin_client(await again.server()) as client:
        for command_id in created:
            await client.status(command_id)
        for command_id in finished:
            status = await client.status(command_id)
            expected = inline(command_id.encode())
            assert status["state"] == "SUCCEEDED"
            assert status["response"]["response"] == expected
    await again.begin_to_stop()


async def test_a_server_whose_database_fails_says_so(stoppable: Stoppable) -> None:
    server = await stoppable.server()

    server.fail(RuntimeError("the disk is gone"))

    assert str(server.failure.exception()) == "the disk is gone"


async def test_an_unready_server_says_so_while_it_stops(stoppable: Stoppable) -> None:
    async with admin_client(await stoppable.server()) as client:
        client.server.parts.services.announcements.close()

        answer = await client.call("GET", "/readyz")

        assert (answer.status, answer.code) == (503, "UNAVAILABLE")
