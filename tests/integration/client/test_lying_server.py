"""A sender against a server that lies: what it is made to send, to whom, and how much it takes."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from arc_client import ArcError, Client, ResultUnreadable, UnexpectedAnswer, UploadFailed
from arc_client.wire import connection
from tests.support.fake_server import FakeServer, Hasty, one_kind
from tests.support.hostile_server import Bystander
from tests.support.shell import arc as arc_command

LARGE = os.urandom(200_000)
PLAIN_BYTES = 64 * 1024 * 1024

LIES: dict[str, dict[str, Any]] = {
    "another method": {"method": "DELETE"},
    "a method of its own": {"method": "POST"},
    "another service of this machine": {"url": "http://127.0.0.1:{port}/v1/secrets"},
    "by name": {"url": "http://localhost:{port}/v1/secrets"},
    "by another spelling": {"url": "http://2130706433:{port}/v1/secrets"},
    "in IPv6": {"url": "http://[::ffff:127.0.0.1]:{port}/v1/secrets"},
    "a neighbour": {"url": "http://10.0.0.1:{port}/"},
    "the metadata service": {"url": "http://169.254.169.254/latest/meta-data"},
    "its name": {"url": "http://metadata.google.internal/"},
    "the server by another scheme": {"url": "https://{server}/"},
    "a file": {"url": "file:///etc/passwd"},
    "a token": {"headers": {"Authorization": "Bearer t"}},
    "a cookie": {"headers": {"Cookie": "session=t"}},
    "a vault's token": {"headers": {"X-Vault-Token": "t"}},
    "the metadata service's header": {"headers": {"Metadata-Flavor": "Google"}},
    "framing": {"headers": {"Transfer-Encoding": "chunked"}},
    "a header within a value": {"headers": {"x-amz-acl": "a\r\nHost: b"}},
}


@pytest.fixture
async def arc(server: FakeServer) -> AsyncIterator[Client]:
    """A client that uploads what it may, and tries again without waiting."""
    async with Client(
        server.url, retry_seconds=5, clock=Hasty(), inline_bytes=1_000, environ={}
    ) as client:
        yield client


@pytest.fixture
async def bystander() -> AsyncIterator[Bystander]:
    made = await Bystander().start()
    yield made
    await made.stop()


def told(lie: dict[str, Any], server: FakeServer, bystander: Bystander) -> dict[str, Any]:
    """The lie with the ports of this test."""
    if "url" not in lie:
        return lie
    where = server.url.removeprefix("http://")
    return {"url": lie["url"].format(port=bystander.port, server=where)}


@one_kind
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_params_go_nowhere_but_where_they_may(
    server: FakeServer, arc: Client, bystander: Bystander, lie: dict[str, Any]
) -> None:
    server.lies["PUT"] = told(lie, server, bystander)

    with pytest.raises(UploadFailed, match="the server hands out"):
        await arc.invoke("dep", "echo", LARGE)

    assert bystander.visits == []
    assert server.count("POST", "/commands") == 1  # a fresh URL would be no better
    assert all("/blobs/" not in path for _, path, _ in server.requests)


@one_kind
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_results_come_from_nowhere_but_where_they_may(
    server: FakeServer, arc: Client, bystander: Bystander, lie: dict[str, Any]
) -> None:
    server.lies["GET"] = told(lie, server, bystander)

    with pytest.raises(ResultUnreadable, match="the server hands out"):
        await arc.invoke("dep", "echo", LARGE, returns=bytes)

    assert bystander.visits == []
    assert all("/result" not in path for _, path, _ in server.requests)


@one_kind
async def test_a_private_host_is_used_when_it_is_named(
    server: FakeServer, bystander: Bystander
) -> None:
    server.lies["PUT"] = {"url": f"{bystander.url}/store"}
    environ = {"ARC_SERVER_URL": server.url, "ARC_ALLOW_HOSTS": "blobs.corp, 127.0.0.1"}

    async with Client(inline_bytes=1_000, environ=environ) as client:
        with pytest.raises(ArcError):  # the bystander keeps nothing
            await client.invoke("dep", "echo", LARGE)

    assert bystander.visits[0].startswith(b"PUT /store HTTP/1.1")


@one_kind
@pytest.mark.parametrize(
    ("where", "kind"), [("put-blob", UploadFailed), ("get-blob", ResultUnreadable)]
)
async def test_a_redirect_of_the_storage_is_told_as_its_own(
    server: FakeServer, arc: Client, where: str, kind: type[ArcError]
) -> None:
    def redirect(_request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "https://login.hotel.test/in?u=x"})

    server.lies["GET"] = {}
    server.faults[where] = [redirect] * 9

    with pytest.raises(kind) as raised:
        await arc.invoke("dep", "echo", LARGE, returns=bytes)

    assert f"{server.url}, where bodies are stored, redirects (302) to" in raised.value.message
    assert "https://login.hotel.test/in?u=***, which is not followed" in raised.value.message
    assert "server URL" not in raised.value.message


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A small body that becomes a large one."""
    return gzip.compress(bytes(PLAIN_BYTES), 1)


@one_kind
@pytest.mark.parametrize("where", ["get-blob", "put-blob", "create", "status", "complete"])
async def test_nothing_is_decompressed_unasked(
    server: FakeServer, arc: Client, bomb: bytes, where: str
) -> None:
    def lie(_request: web.Request) -> web.Response:
        return web.Response(
            body=bomb, content_type="application/json", headers={"Content-Encoding": "gzip"}
        )

    server.faults[where] = [lie] * 20

    tracemalloc.start()
    try:
        with pytest.raises(ArcError):
            await (
                arc.status("cmd_1")
                if where == "status"
                else arc.invoke("dep", "echo", LARGE, returns=bytes)
            )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < PLAIN_BYTES / 4
    assert all(headers["Accept-Encoding"] == "identity" for _, _, headers in server.requests)


def endless(_request: web.Request) -> web.StreamResponse:
    """Send more than a client takes, of no announced length."""
    return web.Response(body=bytes(3_000_000))


@one_kind
async def test_a_result_of_no_announced_size_is_taken_up_to_a_limit(
    server: FakeServer, tmp_path: Path
) -> None:
    server.lies["GET"] = {}
    server.faults["get-blob"] = [endless] * 9

    async with Client(
        server.url,
        inline_bytes=1_000,
        environ={},
        max_memory_bytes=10**6,
        max_result_bytes=2 * 10**6,
    ) as client:
        with pytest.raises(ResultUnreadable, match="has more than 1,000,000 bytes"):
            await client.invoke("dep", "echo", LARGE, returns=bytes)
        with pytest.raises(ResultUnreadable, match="has more than 2,000,000 bytes"):
            await client.invoke_to_file(tmp_path / "out", "dep", "echo", LARGE)

    assert list(tmp_path.iterdir()) == []
    assert len(server.faults["get-blob"]) == 7  # neither was tried again


@one_kind
@pytest.mark.parametrize("status", [200, 500])
async def test_an_answer_of_the_server_is_taken_up_to_a_limit(
    server: FakeServer, arc: Client, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(connection, "MAX_ANSWER_BYTES", 100_000)
    server.faults["status"] = [
        lambda _request: web.Response(body=b"[" * 3_000_000, status=status)
    ] * 9

    with pytest.raises(ArcError) as raised:
        await arc.status("cmd_1")

    assert isinstance(raised.value, UnexpectedAnswer) or status == 500
    assert len(raised.value.message) < 1_000


@one_kind
async def test_arc_says_in_one_line_where_it_does_not_go(
    server: FakeServer, bystander: Bystander, tmp_path: Path
) -> None:
    server.lies["PUT"] = {"url": f"{bystander.url}/x"}
    (tmp_path / "params").write_bytes(b"[" + b"1," * 1_000_000 + b"1]")

    ended = await arc_command(
        "invoke", "dep", "echo", "--params", f"@{tmp_path}/params", url=server.url
    )

    assert ended.code == 3
    assert "127.0.0.1 is this machine; see ARC_ALLOW_HOSTS" in ended.err
    assert bystander.visits == []
