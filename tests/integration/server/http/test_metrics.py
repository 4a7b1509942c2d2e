"""The figures of a server, beside what was really done to it; `metrics.listen` by itself."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import prometheus_client
import pytest
from structlog.testing import capture_logs

from arc_server.app import CannotStart, serving
from arc_server.auth.tokens import Scope
from arc_server.backup.taking import take_backup
from arc_server.config.metrics_section import ServerMetricsSection
from arc_server.config.sections import (
    DeploymentEntry,
    DiskSection,
    PushSection,
    QuotaSection,
    RetentionSection,
    ServerConfig,
    ServerTlsSection,
)
from arc_server.disk_room import Measured
from arc_server.metrics import endpoint
from arc_server.metrics.meter import OTHER as ELSEWHERE
from tests.support import monitoring
from tests.support.certificates import Authority
from tests.support.push_target import LOOPBACK, push_worker
from tests.support.running_server import OTHER, OWN, Client, Serve, inline, make_token, success
from tests.support.scrapes import Scrape, get, get_over, scrape
from tests.support.waiting import until

ON = ServerMetricsSection(listen="127.0.0.1:0")
LEASES = {"route": "/commands/leases", "method": "POST"}
CREATES = {"route": "/commands", "method": "POST"}
LIVE = ("pending_upload", "pending", "dispatched")
FAILURE = {"status": "error", "code": "NO", "message": "no"}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each scrape read anew; a test has its own for the text that is kept."""
    monkeypatch.setattr(endpoint, "KEPT_SECONDS", 0.0)


class Metered:
    """A server with figures, its admin, and where the figures are."""

    def __init__(self, client: Client, url: str) -> None:
        self.client = client
        self.url = url

    async def scrape(self) -> Scrape:
        return await scrape(self.url)

    async def respond(self, lease: dict[str, Any], response: dict[str, Any]) -> None:
        url = lease["envelope"]["responseHandling"]["submitResponseUrl"]
        assert (await self.client.call("PUT", url, response, token="")).status == 200


@pytest.fixture
def metered(serve: Serve) -> Any:
    """Start a server with figures."""

    @asynccontextmanager
    async def start(**keys: Any) -> AsyncIterator[Metered]:
        with capture_logs() as logged:
            async with serve(**{"metrics": ON, **keys}) as client:
                (url,) = [e["url"] for e in logged if e["event"] == "metrics.listening"]
                yield Metered(client, url)

    return start


async def test_the_figures_say_what_became_of_each_command(metered: Any) -> None:
    async with metered() as server:
        client = server.client
        for _ in range(4):
            await client.create()
        fine, bad, given_back, _ = await client.lease(maxLeases=4)
        await server.respond(fine, success())
        await server.respond(bad, FAILURE)
        await client.call("POST", f"/v1/commands/leases/{given_back['leaseId']}/release", {})
        cancelled = await client.create(OTHER)
        await client.call("POST", f"/v1/commands/{cancelled}/cancel")
        waits = {"mode": "storage", "size": 200_000}
        await client.create(params=waits)

        found = await server.scrape()

        states = {state: found.value("commands", state=state) for state in LIVE}
        moved = {
            (was, to): found.value("command_transitions_total", **{"from": was, "to": to})
            for was, to in (
                ("none", "pending"),
                ("none", "pending_upload"),
                ("pending", "dispatched"),
                ("dispatched", "pending"),
                ("dispatched", "succeeded"),
                ("dispatched", "failed"),
                ("pending", "failed"),
                ("pending", "expired"),
            )
        }
        assert states == {"pending_upload": 1, "pending": 1, "dispatched": 1}
        assert moved == {
            ("none", "pending"): 5,
            ("none", "pending_upload"): 1,
            ("pending", "dispatched"): 4,
            ("dispatched", "pending"): 1,
            ("dispatched", "succeeded"): 1,
            ("dispatched", "failed"): 1,
            ("pending", "failed"): 1,
            ("pending", "expired"): 0,
        }
        assert found.value("lease_wait_seconds_count") == 4
        assert found.value("command_seconds_count", state="succeeded") == 1
        assert found.value("command_seconds_count", state="failed") == 2
        assert found.value("command_seconds_count", state="expired") == 0
        assert found.value("requests_total", status="2xx", **CREATES) == 6
        assert found.value("request_body_bytes_total", **CREATES) > 0
        assert found.value("response_body_bytes_total", **CREATES) > 0
        assert found.value("oldest_pending_age_seconds") > 0


async def test_a_server_that_starts_counts_the_commands_that_it_finds(
    metered: Any, serve: Serve
) -> None:
    async with serve() as client:
        for _ in range(3):
            await client.create()
        await client.lease(maxLeases=1)

    async with metered() as server:
        found = await server.scrape()
        assert found.value("commands", state="pending") == 2
        assert found.value("commands", state="dispatched") == 1

        await server.client.lease(maxLeases=2)

        found = await server.scrape()
        assert found.value("commands", state="pending") == 0
        assert found.value("commands", state="dispatched") == 3
        assert found.value("oldest_pending_age_seconds") == 0


async def test_the_time_that_a_poll_waits_on_purpose_is_no_work(metered: Any) -> None:
    async with metered() as server:
        client = server.client
        assert await client.lease(waitSeconds=1) == []

        found = await server.scrape()

        assert found.value("request_seconds_count", **LEASES) == 1
        assert found.value("request_seconds_sum", **LEASES) < 1
        assert found.total("wakeup_seconds_count", **LEASES) == 0


async def test_a_wake_up_is_measured_for_polls_and_for_senders(metered: Any) -> None:
    async with metered() as server:
        client = server.client
        waits = client.server.parts.services.announcements
        poll = asyncio.create_task(client.lease(waitSeconds=60))
        await until(lambda: waits.work.count == 1)
        assert (await server.scrape()).value("waiting_polls") == 1
        command_id = await client.create()
        (lease,) = await poll
        status = client.call("GET", f"/v1/commands/{command_id}?waitSeconds=60")
        sender = asyncio.create_task(status)
        await until(lambda: waits.results.count == 1)
        assert (await server.scrape()).value("waiting_results") == 1

        await server.respond(lease, success())
        await sender

        found = await server.scrape()
        status_route = {"route": "/commands/*", "method": "GET"}
        assert found.value("wakeup_seconds_count", **LEASES) == 1
        assert found.value("wakeup_seconds_count", **status_route) == 1
        assert found.value("waiting_polls") == found.value("waiting_results") == 0


async def test_refusals_are_counted_by_their_reason(metered: Any) -> None:
    limits = {"max_body_bytes": 4096, "max_head_bytes": 4096, "strangers_per_second": 1}
    quotas = QuotaSection(max_live_commands=1)
    async with metered(http=limits, quotas=quotas) as server:
        client = server.client
        agent = await make_token(client.server, Scope.AGENT, OWN)
        create = {"deploymentId": OWN, "command": "report", "params": inline(b"{}")}

        statuses = [
            (await client.call("POST", "/v1/commands", body, token=token)).status
            for body, token in (
                *[(create, "arc_admin_wrong")] * 3,
                (create, agent),
                (create | {"params": inline(bytes(9000))}, None),
                (create, None),
                (create, None),
            )
        ]

        found = await server.scrape()
        assert statuses == [401, 401, 429, 403, 413, 200, 429]
        reasons = {
            reason: found.value("refusals_total", reason=reason)
            for reason in (
                *("unauthorized", "rate_limited", "forbidden"),
                *("payload_too_large", "quota_exceeded", "too_many_connections"),
            )
        }
        assert reasons == {
            "unauthorized": 2,
            "rate_limited": 1,
            "forbidden": 1,
            "payload_too_large": 1,
            "quota_exceeded": 1,
            "too_many_connections": 0,
        }
        assert found.value("requests_total", status="4xx", **CREATES) == 6


async def test_connections_past_the_limit_are_counted(metered: Any) -> None:
    async with metered(http={"max_connections": 1}) as server:
        client = server.client
        host, port = client.server.url.removeprefix("http://").split(":")
        poll = asyncio.create_task(client.lease(waitSeconds=60))
        await until(lambda: client.server.parts.services.announcements.work.count == 1)
        assert (await server.scrape()).value("connections") == 1

        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 503 " in await reader.readline()
        writer.close()
        await writer.wait_closed()

        found = await server.scrape()
        assert found.value("refusals_total", reason="too_many_connections") == 1
        poll.cancel()


async def test_what_clients_make_up_is_no_label(metered: Any) -> None:
    async with metered() as server:
        client = server.client
        known = (await server.scrape()).labels()
        for number in range(5):
            await client.call("GET", f"/v1/nowhere/{number}")
            await client.call("BREW", f"/v1/commands/{number}")
            await client.call("GET", f"/v1/commands/cmd_{number}")
            await client.create(f"deployment-{number}", command=f"command-{number}")

        found = (await server.scrape()).labels()

        new = {label: found[label] - known.get(label, set()) for label in found}
        assert {label: values for label, values in new.items() if values} == {
            "route": {ELSEWHERE},
            "method": {ELSEWHERE},
            "status": {"4xx"},
        }


async def test_pushes_and_circuits_are_counted_by_outcome(metered: Any) -> None:
    async with push_worker() as worker:
        worker.answers = [202, 404, 500]
        entry = DeploymentEntry(id="pushed", push_url=worker.url)
        push = PushSection(allow_hosts=[LOOPBACK], circuit_failures=1, circuit_base_seconds=60)
        async with metered(push=push, deployments=[entry]) as server:

            async def counted(outcome: str) -> bool:
                return (await server.scrape()).value("pushes_total", outcome=outcome) == 1

            for outcome in ("accepted", "rejected", "failed"):
                await server.client.create("pushed")
                await until(lambda outcome=outcome: counted(outcome))

            async def is_open() -> bool:
                return (await server.scrape()).value("push_circuits_open") == 1

            await until(is_open)


async def test_what_retention_removes_is_counted(metered: Any) -> None:
    kept = RetentionSection(succeeded_seconds=0, interval_seconds=0.05)
    async with metered(retention=kept) as server:
        await server.client.create()
        (lease,) = await server.client.lease()
        await server.respond(lease, success())

        async def is_counted() -> bool:
            return (await server.scrape()).value("purged_total", kind="commands") == 1

        await until(is_counted)


async def test_a_full_disk_and_the_databases_files_are_shown(metered: Any) -> None:
    disk = DiskSection(ballast_bytes=0, check_seconds=0.01)

    def gauge(_: Path) -> Measured:
        return Measured(200 << 20, 10 << 40)

    async with metered(disk=disk, gauge=gauge) as server:
        await server.client.call("GET", "/v1/commands")

        found = await server.scrape()

        assert found.value("disk_free_bytes") == 200 << 20
        assert found.value("disk_size_bytes") == 10 << 40
        assert found.value("disk_level") == 2
        assert found.value("wal_bytes") > 0
        assert found.value("database_bytes") > 0
        assert found.families["process_open_fds"].samples[0].value > 0
        assert found.families["process_max_fds"].samples[0].value > 0
        assert await get(server.url, "/readyz") == (200, '{"status":"ready","disk":"hard"}')
        assert (await get(server.url, "/healthz"))[0] == 200


async def test_a_critical_disk_is_not_ready_there_either(metered: Any) -> None:
    async with metered(gauge=lambda _: Measured(0, 10 << 40)) as server:
        status, text = await get(server.url, "/readyz")

        assert (status, "INSUFFICIENT_STORAGE" in text) == (507, True)


@asynccontextmanager
async def served_by_tls(tmp_path: Path, authority: Authority) -> AsyncIterator[Metered]:
    issued = authority.issue("server", ["127.0.0.1"])
    config = ServerConfig(
        listen="127.0.0.1:0",
        data_dir=tmp_path / "data",
        tls=ServerTlsSection(cert_file=issued.cert_file, key_file=issued.key_file),
        disk=DiskSection(ballast_bytes=0),
        metrics=ON,
    )
    trust = ssl.create_default_context(cafile=authority.ca_file)
    connector = aiohttp.TCPConnector(ssl=trust)
    with capture_logs() as logged:
        async with serving(config) as server, aiohttp.ClientSession(connector=connector) as session:
            (url,) = [e["url"] for e in logged if e["event"] == "metrics.listening"]
            token = await make_token(server, Scope.ADMIN)
            yield Metered(Client(server, session, token), url)


async def test_the_ends_of_certificate_and_backup_are_shown(tmp_path: Path) -> None:
    async with served_by_tls(tmp_path, Authority(tmp_path / "ca")) as server:
        before = await server.scrape()
        parts = server.client.server.parts
        manifest = await take_backup(parts.store, tmp_path / "data", tmp_path / "backup")

        found = await server.scrape()

        tls = server.client.server.tls
        assert tls is not None
        ends_at = tls.certificate.not_after.timestamp()
        assert found.value("certificate_expiry_timestamp_seconds") == ends_at
        assert "arc_server_last_backup_timestamp_seconds" not in before.names
        taken_at = found.value("last_backup_timestamp_seconds")
        assert taken_at == pytest.approx(manifest.taken_at.timestamp(), abs=1e-3)


async def test_each_figure_of_dashboard_and_alerts_is_in_a_scrape(tmp_path: Path) -> None:
    async with served_by_tls(tmp_path, Authority(tmp_path / "ca")) as server:
        client = server.client
        parts = client.server.parts
        poll = asyncio.create_task(client.lease(waitSeconds=60))
        await until(lambda: parts.services.announcements.work.count == 1)
        await client.create()
        await poll
        await take_backup(parts.store, tmp_path / "data", tmp_path / "backup")

        found = await server.scrape()

    assert {name for name in monitoring.figures() if name not in found.names} == set()
    from_prometheus = {"job", "instance"}
    assert monitoring.labels() - set(found.labels()) == from_prometheus


async def test_a_scrape_is_made_in_a_thread_and_kept_for_a_second(
    metered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    generate = prometheus_client.generate_latest

    def noted(registry: Any) -> bytes:
        threads.append(threading.get_ident())
        return generate(registry)

    monkeypatch.setattr(endpoint.prometheus, "generate_latest", noted)
    monkeypatch.setattr(endpoint, "KEPT_SECONDS", 3600.0)
    async with metered() as server:
        first, *others = await asyncio.gather(*(get(server.url) for _ in range(5)))

        await server.client.create()

        assert {*others, await get(server.url)} == {first}
        assert len(threads) == 1
        assert threads != [threading.get_ident()]


async def test_figures_are_not_on_the_address_of_clients(metered: Any, client: Client) -> None:
    assert (await client.call("GET", "/metrics")).status == 404
    async with metered(data_dir=client.server.parts.store.database.path.parent / "b") as server:
        assert (await server.client.call("GET", "/metrics")).status == 404
        assert (await get(server.url, "/v1/commands"))[0] == 404


async def test_figures_are_served_on_a_unix_socket_too(metered: Any, tmp_path: Path) -> None:
    place = tmp_path / "m.sock"
    async with metered(metrics=ServerMetricsSection(listen=f"unix:{place}")):
        status, text = await get_over(place)

        assert status == 200
        assert "arc_server_build_info" in text


async def test_a_port_that_is_taken_stops_the_start(metered: Any, tmp_path: Path) -> None:
    async with metered() as server:
        taken = server.url.removeprefix("http://").removesuffix("/metrics")
        config = ServerConfig(
            listen="127.0.0.1:0",
            data_dir=tmp_path / "other",
            metrics=ServerMetricsSection(listen=taken),
        )
        with pytest.raises(CannotStart, match=f"metrics.listen: {taken}: Address already in use"):
            async with serving(config):
                raise AssertionError("it serves")
