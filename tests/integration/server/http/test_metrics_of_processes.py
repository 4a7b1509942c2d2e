"""The figures of a real server process: under load, across a restart, and without any secret."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from arc_protocol.lifecycle import LIVE
from tests.support.processes import Process, run_once
from tests.support.running_server import inline, success
from tests.support.scrapes import Scrape, scrape
from tests.support.waiting import until

CREATES = {"route": "/commands", "method": "POST"}
SECRET = "q7Zk-very-secret-words"


class Running:
    """A server process, a session with its admin's token, and where its figures are."""

    def __init__(self, url: str, metrics: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.metrics = metrics
        self.session = session

    async def call(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        url = path if path.startswith("http") else f"{self.url}/v1{path}"
        async with self.session.request(method, url, json=body, **more) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json(content_type=None)

    async def create(self, deployment: str = "acme", **more: Any) -> str:
        body = {"deploymentId": deployment, "command": "report", "params": inline(b"{}")}
        return (await self.call("POST", "/commands", body | more))["commandId"]

    async def lease(self, most: int, wait_seconds: float = 0, **more: Any) -> list[Any]:
        body = {"deploymentId": "acme", "maxLeases": most, "waitSeconds": wait_seconds}
        return (await self.call("POST", "/commands/leases", body | more))["leases"]

    async def respond(self, lease: Any, data: bytes = b"{}") -> None:
        await self.call(
            "PUT", lease["envelope"]["responseHandling"]["submitResponseUrl"], success(data)
        )

    async def scrape_until(self, holds: Any) -> Scrape:
        """Scrape until the figures are such: a scrape may be a second old."""

        async def found() -> Scrape | None:
            read = await scrape(self.metrics)
            return read if holds(read) else None

        return await until(found)


@asynccontextmanager
async def running(data_dir: Path) -> AsyncIterator[Running]:
    (token,) = await run_once(
        "arc-server", "token", "create", "--init", "--scope", "admin", "--data-dir", str(data_dir)
    )
    process = await Process.start(
        "server", "arc-server", "serve", "--data-dir", str(data_dir), "--listen", "127.0.0.1:0",
        env={"ARC_SERVER_METRICS_LISTEN": "127.0.0.1:0"},
    )  # fmt: skip
    try:
        url = await process.url()
        metrics = (await process.logged("metrics.listening"))["url"]
        headers = {"Authorization": f"Bearer {token}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            yield Running(url, metrics, session)
        process.terminate()
        assert await process.ended() == 0, process.tail()
    finally:
        await process.put_away()


async def test_the_figures_are_those_of_what_was_done_under_load(tmp_path: Path) -> None:
    count, scrapes = 200, []
    async with running(tmp_path / "data") as server:
        done = asyncio.Event()

        async def scrape_on() -> None:
            while not done.is_set():
                scrapes.append(await scrape(server.metrics))

        async def work() -> None:
            left = count
            while left:
                leases = await server.lease(20, 5)
                await asyncio.gather(*map(server.respond, leases))
                left -= len(leases)

        scraping = asyncio.create_task(scrape_on())
        working = asyncio.create_task(work())
        await asyncio.gather(*(server.create() for _ in range(count)))
        await working
        await server.create()
        done.set()
        await scraping

        found = await server.scrape_until(
            lambda read: read.value("requests_total", status="2xx", **CREATES) == count + 1
        )

        assert found.value("command_seconds_count", state="succeeded") == count
        assert found.value("lease_wait_seconds_count") == count
        assert {s: found.value("commands", state=s.value.lower()) for s in LIVE} == {
            state: 1.0 if state.value == "PENDING" else 0.0 for state in LIVE
        }
        assert found.value("commit_operations_count") <= found.value("commit_operations_sum")
        assert found.value("commit_seconds_sum") <= found.value("writer_busy_seconds_total")
        assert found.value("loop_lag_max_seconds") >= 0
        ended = [each.value("command_seconds_count", state="succeeded") for each in scrapes]
        assert ended == sorted(ended)
        assert len(scrapes) > 1


async def test_gauges_outlast_a_restart_and_counters_begin_anew(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as server:
        await server.create()
        await server.scrape_until(lambda read: read.value("commands", state="pending") == 1)

    async with running(tmp_path / "data") as server:
        found = await scrape(server.metrics)

        assert found.value("commands", state="pending") == 1
        assert found.value("requests_total", status="2xx", **CREATES) == 0
        assert found.value("oldest_pending_age_seconds") > 0


async def test_no_secret_and_no_name_is_in_the_figures(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as server:
        names = {"command": "name-of-a-command", "idempotencyKey": "name-of-a-key"}
        params = inline(SECRET.encode())
        command_id = await server.create("acme", params=params, **names)
        (lease,) = await server.lease(1, agentId="name-of-an-agent")
        url = lease["envelope"]["responseHandling"]["submitResponseUrl"]
        (token,) = re.findall(r"response_token=([^&]+)", url)
        await server.respond(lease, SECRET.encode())
        await server.call("GET", f"/commands/{command_id}")
        for path in (f"/nowhere/{SECRET}", f"/commands/{SECRET}", f"/blobs/{SECRET}?sig={SECRET}"):
            for headers in ({}, {"Authorization": f"Bearer {SECRET}"}):
                async with server.session.get(f"{server.url}/v1{path}", headers=headers) as answer:
                    assert answer.status >= 400

        found = await server.scrape_until(
            lambda read: read.value("command_seconds_count", state="succeeded") == 1
        )

        bearer = server.session.headers["Authorization"].removeprefix("Bearer ")
        told = [
            *(SECRET, params["inlineBase64"], bearer, bearer.rpartition("_")[2], token),
            *(command_id, lease["leaseId"], "acme", *names.values(), "name-of-an-agent"),
            *("127.0.0.1", str(tmp_path)),
        ]
        assert [each for each in told if each in found.text] == []


def test_without_the_setting_prometheus_is_not_even_imported() -> None:
    code = "import sys, arc_server.app; print([m for m in sys.modules if 'prometheus' in m])"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)

    assert done.stdout == "[]\n"
