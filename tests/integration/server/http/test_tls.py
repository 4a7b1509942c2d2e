"""TLS of the server itself: certificates that change under open connections, and handshakes."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives import serialization
from structlog.testing import capture_logs

from arc_runtime.config.settings import SettingsError
from arc_server.app import RunningServer, serving
from arc_server.cli.main import check_config
from arc_server.config.sections import ServerConfig, ServerTlsSection
from arc_server.http.limits import HttpLimits
from tests.support.certificates import Authority, Issued
from tests.support.running_server import OWN, Answer, Client, admin_client
from tests.support.waiting import until

DAY = timedelta(days=1)


class Pair:
    """The files that a server reads, and what an operator puts into them."""

    def __init__(self, authority: Authority, directory: Path) -> None:
        self.authority = authority
        self.cert_file = directory / "server.crt"
        self.key_file = directory / "server.key"
        self.first = authority.issue("first", ["127.0.0.1", "::1"])
        self.second = authority.issue("second", ["127.0.0.1", "::1"])
        self.put(self.first)

    def put(self, issued: Issued) -> None:
        shutil.copyfile(issued.cert_file, self.cert_file)
        shutil.copyfile(issued.key_file, self.key_file)

    def section(self, **keys: Any) -> ServerTlsSection:
        return ServerTlsSection(cert_file=self.cert_file, key_file=self.key_file, **keys)

    def trust(self, client: Issued | None = None) -> ssl.SSLContext:
        """What a client works with that has seen no server yet."""
        context = ssl.create_default_context(cafile=self.authority.ca_file)
        if client is not None:
            context.load_cert_chain(client.cert_file, client.key_file)
        return context


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(Authority(tmp_path / "ca"), tmp_path)


@asynccontextmanager
async def serve(
    pair: Pair, listen: str = "127.0.0.1:0", http: dict[str, Any] | None = None, **tls: Any
) -> AsyncIterator[RunningServer]:
    config = ServerConfig(
        listen=listen,
        data_dir=pair.cert_file.parent / "data",
        tls=pair.section(**tls),
        http=HttpLimits(drain_seconds=5, **(http or {})),
    )
    async with serving(config) as server:
        yield server


@asynccontextmanager
async def client_of(server: RunningServer, context: ssl.SSLContext) -> AsyncIterator[Client]:
    async with (
        admin_client(server) as client,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
    ):
        client.session = session
        yield client


def address_of(server: RunningServer) -> tuple[str, int]:
    host, _, port = server.url.removeprefix("https://").rpartition(":")
    return host.strip("[]"), int(port)


async def shown(server: RunningServer, pair: Pair) -> bytes | None:
    """The certificate that a new connection is shown."""
    _, writer = await asyncio.open_connection(*address_of(server), ssl=pair.trust())
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return found


async def silent(server: RunningServer) -> asyncio.StreamWriter:
    """A connection that never says hello."""
    return (await asyncio.open_connection(*address_of(server)))[1]


async def poll(client: Client) -> asyncio.Task[Answer]:
    """A long poll that waits at the server."""
    body = {"deploymentId": OWN, "waitSeconds": 30}
    waiting = client.server.parts.services.announcements.work
    before = waiting.count
    task = asyncio.create_task(client.call("POST", "/v1/commands/leases", body))
    await until(lambda: waiting.count > before)
    return task


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0"])
async def test_the_server_speaks_https_and_its_urls_say_so(pair: Pair, listen: str) -> None:
    async with serve(pair, listen) as server, client_of(server, pair.trust()) as client:
        await client.create()
        (lease,) = await client.lease()

        url = lease["envelope"]["responseHandling"]["submitResponseUrl"]
        assert url.startswith(f"{server.url}/v1/commands/")
        assert server.url.startswith("https://")
        assert (await client.call("PUT", url, {"status": "success", "response": {
            "mode": "inline", "inlineBase64": ""}}, token="")).status == 200  # fmt: skip


async def test_a_new_certificate_comes_into_force_and_open_connections_go_on(pair: Pair) -> None:
    async with serve(pair) as server, client_of(server, pair.trust()) as client:
        waiting = await poll(client)
        pair.put(pair.second)

        server.reload()

        assert await shown(server, pair) == pair.second.der
        async with client_of(server, pair.trust()) as another:
            command_id = await another.create()
        (lease,) = (await waiting).json["leases"]
        assert lease["commandId"] == command_id


async def test_changed_files_are_noticed(pair: Pair) -> None:
    async with serve(pair, check_seconds=0.01) as server:
        assert await shown(server, pair) == pair.first.der
        pair.put(pair.second)

        async def is_second() -> bool:
            return await shown(server, pair) == pair.second.der

        await until(is_second)


def _with_password(pair: Pair) -> None:
    key = serialization.load_pem_private_key(pair.key_file.read_bytes(), None)
    pair.key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )


BAD_FILES: dict[str, Any] = {
    "the key of another": (
        "tls.cert_file",
        lambda pair: shutil.copyfile(pair.second.key_file, pair.key_file),
    ),
    "no certificate": ("tls.cert_file", lambda pair: pair.cert_file.write_text("?")),
    "half a certificate": (
        "tls.cert_file",
        lambda pair: pair.cert_file.write_bytes(pair.cert_file.read_bytes()[:200]),
    ),
    "no file": ("tls.cert_file", lambda pair: pair.cert_file.unlink()),
    "no key": ("tls.key_file", lambda pair: pair.key_file.write_text("?")),
    "no file of the key": ("tls.key_file", lambda pair: pair.key_file.unlink()),
    "a directory": ("tls.key_file", lambda pair: pair.key_file.unlink() or pair.key_file.mkdir()),
    "a named pipe": (
        "tls.key_file",
        lambda pair: pair.key_file.unlink() or os.mkfifo(pair.key_file),
    ),
    "a key with a password": ("tls.key_file", _with_password),
    "no authorities": (
        "tls.client_ca_file",
        lambda pair: (pair.cert_file.parent / "clients.crt").write_text("?"),
    ),
}


@pytest.mark.parametrize("what", BAD_FILES)
async def test_files_that_cannot_be_used_are_refused_without_harm(pair: Pair, what: str) -> None:
    key, damage = BAD_FILES[what]
    clients = pair.cert_file.parent / "clients.crt"
    shutil.copyfile(pair.authority.ca_file, clients)
    client = pair.authority.issue("client")
    tls = {"client_ca_file": clients} if key == "tls.client_ca_file" else {}
    async with serve(pair, **tls) as server, client_of(server, pair.trust(client)) as before:
        assert (await before.call("GET", "/v1/commands")).status == 200
        damage(pair)

        with capture_logs() as logs:
            server.reload()

        assert [each["key"] for each in logs if each["event"] == "tls.reload_failed"] == [key]
        assert (await before.call("GET", "/v1/commands")).status == 200
        async with client_of(server, pair.trust(client)) as after:
            assert (await after.call("GET", "/v1/commands")).status == 200

    file = pair.cert_file.parent / "server.yaml"
    file.write_text(
        f"tls: {{cert_file: {pair.cert_file}, key_file: {pair.key_file}"
        + (f", client_ca_file: {clients}" if tls else "")
        + "}"
    )
    with pytest.raises(SettingsError) as refused:
        check_config(file)
    assert refused.value.key == key


async def test_a_certificate_that_is_not_valid_now_is_used_with_a_warning(pair: Pair) -> None:
    pair.put(pair.authority.issue("old", ["127.0.0.1"], begins=-2 * DAY, ends=-DAY))

    with capture_logs() as logs:
        async with serve(pair):
            pass

    assert "tls.certificate_not_valid" in [each["event"] for each in logs]


async def test_clients_show_a_certificate_where_authorities_are_named(pair: Pair) -> None:
    stranger = Authority(pair.cert_file.parent / "other").issue("client")
    known = pair.authority.issue("client")
    async with serve(pair, client_ca_file=pair.authority.ca_file) as server:
        for client in (None, stranger):
            async with client_of(server, pair.trust(client)) as refused:
                with pytest.raises(aiohttp.ClientError):
                    await refused.call("GET", "/healthz")

        async with client_of(server, pair.trust(known)) as welcome:
            assert (await welcome.call("GET", "/v1/commands")).status == 200


async def test_handshakes_that_never_end_lock_no_client_out(pair: Pair) -> None:
    async with serve(pair, http={"max_connections": 3}) as server:
        half_open = [await silent(server) for _ in range(6)]

        async with client_of(server, pair.trust()) as client:
            assert (await client.call("GET", "/v1/commands")).status == 200
        for writer in half_open:
            writer.transport.abort()


async def test_handshakes_count_for_their_address(pair: Pair) -> None:
    limits = {"max_connections_per_address": 2}
    async with serve(pair, http=limits) as server, client_of(server, pair.trust()) as client:
        half_open = [await silent(server) for _ in range(2)]
        with pytest.raises(aiohttp.ClientError):
            await client.call("GET", "/healthz")

        for writer in half_open:
            writer.transport.abort()
        await until(lambda: not server.http.handshakes)
        waiting = await poll(client)
        async with client_of(server, pair.trust()) as another:
            assert (await another.call("GET", "/healthz")).status == 200
        waiting.cancel()


@pytest.mark.parametrize(
    "sent", [b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\xff\xff" * 4000, b"\x15"]
)
async def test_what_is_no_tls_is_cut_off(pair: Pair, sent: bytes) -> None:
    async with serve(pair) as server:
        reader, writer = await asyncio.open_connection(*address_of(server))
        writer.write(sent)
        writer.write_eof()

        try:
            answer = await reader.read()
        except ConnectionResetError:
            answer = b""

        assert b"HTTP" not in answer
        writer.transport.abort()
        await until(lambda: not server.http.handshakes)
        assert server.http.open_connections == 0
