"""The proxies of docs/server.md as they stand there, before a real server: nginx and Caddy."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from arc_server.app import RunningServer, serving
from arc_server.config.sections import ServerConfig
from arc_server.http.limits import HttpLimits
from tests.support.certificates import Authority, Issued
from tests.support.running_server import OWN, Client, admin_client
from tests.support.waiting import until

pytestmark = pytest.mark.proxies

PAGE = Path(__file__).parents[2] / "docs/server.md"
MIB = 1 << 20


def nginx(directory: Path, port: int, server: RunningServer, issued: Issued) -> list[str]:
    """The command of nginx, with the page's example in a file that it can run from."""
    example = _replaced(
        _example("nginx"),
        {
            "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
            "/etc/ssl/arc.example.com.pem": str(issued.cert_file),
            "/etc/ssl/arc.example.com.key": str(issued.key_file),
            "127.0.0.1:8484": server.url.removeprefix("http://"),
        },
    )
    paths = "".join(
        f"{kind}_temp_path {directory}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = directory / "nginx.conf"
    file.write_text(
        f"daemon off;\nworker_processes 1;\npid {directory}/pid;\nerror_log stderr warn;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{paths}\n{example}\n}}\n"
    )
    return ["nginx", "-e", "stderr", "-p", str(directory), "-c", str(file)]


def caddy(directory: Path, port: int, server: RunningServer, issued: Issued) -> list[str]:
    """The command of Caddy, with the page's example in a file that it can run from."""
    example = _replaced(
        _example("text"),
        {
            "arc.example.com {": f"https://127.0.0.1:{port} {{\n"
            f"    tls {issued.cert_file} {issued.key_file}",
            "127.0.0.1:8484": server.url.removeprefix("http://"),
        },
    )
    file = directory / "Caddyfile"
    file.write_text("{\n    admin off\n    auto_https disable_redirects\n}\n" + example)
    return ["caddy", "run", "--config", str(file), "--adapter", "caddyfile"]


PROXIES: dict[str, Callable[[Path, int, RunningServer, Issued], list[str]]] = {
    "nginx": nginx,
    "caddy": caddy,
}


def _example(language: str) -> str:
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return found


def _replaced(text: str, places: dict[str, str]) -> str:
    for old, new in places.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


class Front:
    """A proxy before a server, and the client of an admin that goes through it."""

    def __init__(self, client: Client, port: int, trust: ssl.SSLContext) -> None:
        self.client = client
        self.server = client.server
        self.port = port
        self.url = f"https://127.0.0.1:{port}"
        self.trust = trust

    async def call(self, method: str, path: str, body: Any = None, **what: Any) -> Any:
        return await self.client.call(method, self.url + path, body, **what)

    async def open(self, source: str = "127.0.0.1") -> tuple[asyncio.StreamReader, Any]:
        """A connection of its own, from one of this machine's addresses."""
        return await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.trust, local_addr=(source, 0)
        )


@asynccontextmanager
async def running(command: list[str], port: int, directory: Path) -> AsyncIterator[None]:
    environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(directory)}
    with (directory / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, stderr=log, stdout=log, env=environ
        )

    def answers() -> bool:
        assert process.returncode is None, (directory / "log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        await until(answers)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@pytest.fixture(params=PROXIES)
async def front(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Front]:
    """A proxy that runs by the page's example."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed: apt-get install {request.param}")
    authority = Authority(tmp_path / "ca")
    issued = authority.issue("front", ["127.0.0.1"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = ServerConfig(
        listen="127.0.0.1:0",
        data_dir=tmp_path / "data",
        http=HttpLimits(trusted_proxies=["127.0.0.1"], drain_seconds=1, strangers_per_second=1),
    )
    trust = ssl.create_default_context(cafile=authority.ca_file)
    connector = aiohttp.TCPConnector(ssl=trust, limit=0)
    async with (
        serving(config) as server,
        admin_client(server) as client,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        client.session = session
        command = PROXIES[request.param](tmp_path, port, server, issued)
        async with running(command, port, tmp_path):
            yield Front(client, port, trust)


POLL = {"deploymentId": OWN, "maxLeases": 1}


async def test_a_long_poll_is_woken_through_it_and_urls_lead_through_it(front: Front) -> None:
    work = front.server.parts.services.announcements.work
    waiting = asyncio.create_task(
        front.call("POST", "/v1/commands/leases", POLL | {"waitSeconds": 60})
    )
    await until(lambda: work.count)
    created = await front.call(
        "POST",
        "/v1/commands",
        {
            "deploymentId": OWN,
            "command": "report",
            "params": {"mode": "inline", "inlineBase64": ""},
        },
    )

    (lease,) = (await waiting).json["leases"]

    assert lease["commandId"] == created.json["commandId"]
    submit = lease["envelope"]["responseHandling"]["submitResponseUrl"]
    assert submit.startswith(f"{front.url}/v1/commands/")
    response = {"status": "success", "response": {"mode": "inline", "inlineBase64": ""}}
    assert (await front.client.call("PUT", submit, response, token="")).status == 200


async def test_the_longest_poll_ends_with_the_servers_answer(front: Front) -> None:
    answer = await front.call("POST", "/v1/commands/leases", POLL | {"waitSeconds": 60})

    assert (answer.status, answer.json["leases"]) == (200, [])


async def test_a_large_body_streams_both_ways(front: Front) -> None:
    body = bytes(range(256)) * (32 * MIB // 256)
    created = await front.call(
        "POST",
        "/v1/commands",
        {
            "deploymentId": OWN,
            "command": "report",
            "params": {"mode": "storage", "size": len(body)},
        },
    )
    backend = created.json["storageUpload"]["putRequest"]["backend"]
    target = backend["url"].removeprefix(front.url)
    reader, writer = await front.open()
    head = f"PUT {target} HTTP/1.1\r\nHost: 127.0.0.1:{front.port}\r\nContent-Length: {len(body)}"

    writer.write(f"{head}\r\nConnection: close\r\n\r\n".encode() + body[: len(body) // 2])
    blobs = front.client.server.parts.blobs
    await until(lambda: _stored_bytes(blobs) >= len(body) // 4)  # before the whole has come
    writer.write(body[len(body) // 2 :])
    answer = await reader.read()
    writer.close()

    assert answer.startswith(b"HTTP/1.1 200"), answer[:300]
    path = f"/v1/commands/{created.json['commandId']}/upload-complete"
    assert (await front.call("POST", path, {"size": len(body)})).status == 200
    (lease,) = (await front.call("POST", "/v1/commands/leases", POLL)).json["leases"]
    get = lease["envelope"]["params"]["storageGetRequest"]["backend"]["url"]
    assert get.startswith(front.url)
    assert (await front.client.call("GET", get, token="")).body == body


def _stored_bytes(blobs: Any) -> int:
    return max((file.stat().st_size for file in blobs.root.rglob("*") if file.is_file()), default=0)


async def test_an_early_refusal_arrives_while_the_body_is_still_sent(front: Front) -> None:
    reader, writer = await front.open()
    size = 64 * MIB
    writer.write(
        f"POST /v1/commands HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {size}\r\n"
        f"Authorization: Bearer {front.client.token}\r\n\r\n".encode()
    )

    async def go_on() -> None:
        with suppress(ConnectionError):
            for _ in range(size // MIB):
                writer.write(bytes(MIB))
                await writer.drain()

    sending = asyncio.create_task(go_on())
    async with asyncio.timeout(30):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # pyright: ignore
        error = json.loads(await reader.readexactly(length))
    writer.transport.abort()
    await sending

    assert head.startswith(b"HTTP/1.1 413")
    assert error["code"] == "PAYLOAD_TOO_LARGE"


async def test_connections_to_the_server_are_used_again(front: Front) -> None:
    for _ in range(30):
        reader, writer = await front.open()
        host = f"Host: 127.0.0.1:{front.port}"
        writer.write(f"GET /healthz HTTP/1.1\r\n{host}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'{"status":"ok"}' in answer
        writer.close()

    assert front.server.http.open_connections <= 2


async def test_clients_are_told_apart_by_their_own_addresses(front: Front) -> None:
    async def junk(source: str, claim: str) -> int:
        reader, writer = await front.open(source)
        writer.write(
            f"POST /v1/agents/enrol HTTP/1.1\r\nHost: 127.0.0.1:{front.port}\r\n"
            f"X-Forwarded-For: {claim}\r\nForwarded: for={claim}\r\n"
            "Connection: close\r\nContent-Length: 0\r\n\r\n".encode()
        )
        answer = await reader.read()
        writer.close()
        return int(answer.split()[1])

    flood = [await junk("127.0.0.2", f"198.51.100.{number}") for number in range(8)]

    assert flood[-1] == 429
    assert await junk("127.0.0.3", "127.0.0.2") == 401
