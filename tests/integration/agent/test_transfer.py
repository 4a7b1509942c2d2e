"""Bodies by presigned URLs, and the agent's own requests: what is refused, and what never sent."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.resolver import ThreadedResolver

from arc_agent.config.sections import ServerSection, TransferSection
from arc_agent.net.bodies import NoRoom, TransferRefused
from arc_agent.net.connection import NoContact, Refused, ServerConnection
from arc_agent.net.lease_calls import ask
from arc_agent.net.token import ConfiguredToken
from arc_agent.net.transfer import Transfer
from arc_protocol.codec import decode
from arc_protocol.messages.bodies import LocalBackend, PresignedRequest
from arc_protocol.messages.leases import LeaseRequest
from arc_runtime.network.allowed_hosts import HostRefused
from tests.support.listening import stop_serving

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
GZIP_BOMB = gzip.compress(bytes(2 * 1024 * 1024))


class Store:
    """A web server whose only answer is the test's."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answer: Answer = self._ok

    async def _ok(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"the body")

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append((request.method, request.raw_path, headers, body))
        return await self.answer(request)

    async def start(self) -> web.AppRunner:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}"
        return runner


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    made = Store()
    runner = await made.start()
    yield made
    await stop_serving(runner)


@pytest.fixture
async def make(store: Store) -> AsyncIterator[Callable[..., Awaitable[Transfer]]]:
    """Transfers of an agent whose server is the store, unless said otherwise."""
    made: list[Transfer] = []

    async def begin(server: str | None = None, **settings: Any) -> Transfer:
        section = ServerSection(url=server or store.url, max_back_off_seconds=0.05)
        transfer = Transfer(TransferSection(**settings), section)
        await transfer.open()
        made.append(transfer)
        return transfer

    yield begin
    for transfer in made:
        await transfer.close()


Make = Callable[..., Awaitable[Transfer]]


def presigned(url: str, method: str = "GET", **headers: str) -> PresignedRequest:
    """A presigned request."""
    backend = {"type": "http", "url": url, "method": method, "headers": headers}
    return _request(backend, method)


def _request(backend: dict[str, Any], method: str) -> PresignedRequest:
    import msgspec

    return decode(
        msgspec.json.encode(
            {
                "backend": backend,
                "expiration": "2020-01-01T00:00:00Z",  # never compared with a clock
                "operation": method.lower(),
                "path": "p",
            }
        ),
        PresignedRequest,
    )


async def fetch(transfer: Transfer, request: PresignedRequest, into: Path, **more: Any) -> Any:
    """Fetch with room for everything."""
    given: dict[str, Any] = {"expected": None, "has_room": lambda: True, **more}
    async with asyncio.timeout(10):
        return await transfer.fetch(request, into, **given)


async def test_a_fetch_sends_the_headers_it_was_given_and_none_of_ours(
    store: Store, make: Make, tmp_path: Path
) -> None:
    transfer = await make()

    fetched = await fetch(
        transfer,
        presigned(f"{store.url}/a%2Fb?sig=x%3D&y=+", **{"x-ms-blob-type": "1"}),
        tmp_path / "f",
    )

    assert (tmp_path / "f").read_bytes() == b"the body"
    assert fetched.sha256 == hashlib.sha256(b"the body").hexdigest()
    _, path, headers, _ = store.seen[0]
    assert path == "/a%2Fb?sig=x%3D&y=+"  # byte for byte
    assert headers["x-ms-blob-type"] == "1"
    assert headers["accept-encoding"] == "identity"
    assert "authorization" not in headers
    assert "cookie" not in headers


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(
    store: Store, make: Make, tmp_path: Path, status: int
) -> None:
    async def redirect(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"Location": f"{store.url}/elsewhere"})

    store.answer = redirect
    transfer = await make(server="http://arc.example.com", allow_hosts=["127.0.0.1"])

    with pytest.raises(TransferRefused) as refused:
        await fetch(transfer, presigned(store.url), tmp_path / "f")
    assert str(refused.value) == (
        f"127.0.0.1, where bodies are stored, redirects ({status}) to 127.0.0.1: not followed"
    )
    assert len(store.seen) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413, 418])
async def test_what_the_store_refuses_is_not_tried_again(
    store: Store, make: Make, tmp_path: Path, status: int
) -> None:
    async def refuse(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    store.answer = refuse
    transfer = await make()

    with pytest.raises(TransferRefused) as refused:
        await fetch(transfer, presigned(store.url), tmp_path / "f")
    assert refused.value.status == status
    assert len(store.seen) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_what_fails_in_passing_is_tried_again(
    store: Store, make: Make, tmp_path: Path, status: int
) -> None:
    async def fail_once(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=status if len(store.seen) == 1 else 200, body=b"ok")

    store.answer = fail_once
    transfer = await make()
    await fetch(transfer, presigned(store.url), tmp_path / "f")

    assert (tmp_path / "f").read_bytes() == b"ok"


async def test_a_body_larger_than_it_should_be_is_refused(
    store: Store, make: Make, tmp_path: Path
) -> None:
    transfer = await make(max_bytes=100)

    with pytest.raises(TransferRefused, match="larger than 4 bytes"):
        await fetch(transfer, presigned(store.url), tmp_path / "f", expected=4)
    with pytest.raises(TransferRefused, match="more than is taken"):
        await fetch(transfer, presigned(store.url), tmp_path / "f", expected=101)
    assert len(store.seen) == 1


async def test_a_stream_without_end_is_refused(store: Store, make: Make, tmp_path: Path) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(64 * 1024))

    store.answer = endless
    transfer = await make(max_bytes=1_000_000)

    with pytest.raises(TransferRefused, match="larger than 1000000 bytes"):
        await fetch(transfer, presigned(store.url), tmp_path / "f")


async def test_a_body_of_the_wrong_size_is_fetched_once_more(
    store: Store, make: Make, tmp_path: Path
) -> None:
    transfer = await make()

    with pytest.raises(TransferRefused, match="8 bytes instead of 9"):
        await fetch(transfer, presigned(store.url), tmp_path / "f", expected=9)
    assert len(store.seen) == 2


async def test_a_compressed_body_is_refused_unopened(
    store: Store, make: Make, tmp_path: Path
) -> None:
    async def bomb(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"\x1f\x8b" + bytes(10), headers={"Content-Encoding": "gzip"})

    store.answer = bomb
    transfer = await make()

    with pytest.raises(TransferRefused, match="gzip"):
        await fetch(transfer, presigned(store.url), tmp_path / "f")


async def test_an_answer_of_the_server_that_was_compressed_unasked_is_not_opened(
    store: Store, connect: Connect
) -> None:
    async def bomb(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=GZIP_BOMB, headers={"Content-Encoding": "gzip"})

    store.answer = bomb
    connection = await connect()

    with pytest.raises(NoContact, match="in gzip, which was not asked for"):
        await connection.call("GET", connection.url("x"))
    assert store.seen[0][2]["accept-encoding"] == "identity"


async def test_no_room_ends_a_fetch(store: Store, make: Make, tmp_path: Path) -> None:
    async def large(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=bytes(20 * 1024 * 1024))

    store.answer = large
    transfer = await make()

    with pytest.raises(NoRoom):
        await fetch(transfer, presigned(store.url), tmp_path / "f", has_room=lambda: False)


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("PUT", {}),
        ("DELETE", {}),
        ("GET", {"Host": "metadata"}),
        ("GET", {"Transfer-Encoding": "chunked"}),
        ("GET", {"content-length": "5"}),
        ("GET", {"Metadata-Flavor": "Google"}),
        ("GET", {"X-aws-ec2-metadata-token": "t"}),
        ("GET", {"X-Vault-Token": "t"}),
        ("GET", {"Authorization": "Bearer t"}),
        ("GET", {"Cookie": "session=t"}),
        ("GET", {"Range": "bytes=0-1"}),
        ("GET", {"x-amz-acl": "a\nb"}),
    ],
)
async def test_a_presigned_request_that_is_none_is_refused(
    store: Store, make: Make, tmp_path: Path, method: str, headers: dict[str, str]
) -> None:
    transfer = await make()

    with pytest.raises(TransferRefused):
        await fetch(transfer, presigned(store.url, method, **headers), tmp_path / "f")
    assert store.seen == []


async def test_a_header_that_would_split_the_request_is_not_sent(
    store: Store, make: Make, tmp_path: Path
) -> None:
    transfer = await make()

    with pytest.raises(TransferRefused):
        await fetch(
            transfer, presigned(store.url, **{"x-a": "1\r\nAuthorization: stolen"}), tmp_path / "f"
        )
    assert store.seen == []


async def test_private_addresses_are_refused_unless_the_server_is_there(
    store: Store, make: Make, tmp_path: Path
) -> None:
    transfer = await make(server="https://arc.example.com")

    with pytest.raises(HostRefused, match="private address"):
        await fetch(transfer, presigned(store.url), tmp_path / "f")
    assert store.seen == []

    transfer.configure(TransferSection(allow_hosts=["127.0.0.0/8"]))
    await fetch(transfer, presigned(store.url), tmp_path / "f")


async def test_a_name_is_judged_by_the_address_that_is_connected_to(
    store: Store, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def rebinding(
        _self: Any, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[Any]:
        asked.append(host)
        return [
            {
                "hostname": host,
                "host": "127.0.0.1",
                "port": port,
                "family": socket.AF_INET,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
        ]

    monkeypatch.setattr(ThreadedResolver, "resolve", rebinding)
    transfer = await make(server="https://arc.example.com")
    url = f"http://rebind.example.net:{store.port}/"
    transfer.check(url)  # the name as such looks harmless

    with pytest.raises(HostRefused, match="private address"):
        await fetch(transfer, presigned(url), tmp_path / "f")
    with pytest.raises(HostRefused):
        await transfer.put_message(url, b"{}")
    assert store.seen == []
    assert asked == ["rebind.example.net"] * 2


async def test_an_upload_is_tried_once_and_says_its_length(
    store: Store, make: Make, tmp_path: Path
) -> None:
    transfer = await make()
    source = tmp_path / "source"
    source.write_bytes(b"x" * 600_000)

    await transfer.upload(
        presigned(store.url, "PUT", **{"x-ms-blob-type": "1"}), source, 600_000, "digest"
    )

    method, _, headers, body = store.seen[0]
    assert (method, len(body)) == ("PUT", 600_000)
    assert headers["content-length"] == "600000"
    assert "transfer-encoding" not in headers
    assert "content-type" not in headers
    assert "authorization" not in headers


async def test_an_upload_that_stands_still_is_given_up(make: Make, tmp_path: Path) -> None:
    async def deaf(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    gone = asyncio.Event()
    listener = await asyncio.start_server(deaf, "127.0.0.1", 0, limit=1024)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    transfer = await make(server=url, stall_seconds=0.2)
    source = tmp_path / "source"
    source.write_bytes(bytes(50_000_000))

    with pytest.raises(NoContact):
        await transfer.upload(presigned(url, "PUT"), source, 50_000_000, "digest")
    gone.set()
    listener.close()


async def test_files_of_a_server_on_this_host_are_refused_unless_allowed(
    make: Make, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "params").write_bytes(b"local")
    (tmp_path / "secret").write_bytes(b"secret")
    (shared / "link").symlink_to(tmp_path / "secret")
    request = _local(shared / "params", "get")
    transfer = await make()

    with pytest.raises(TransferRefused, match="switched off"):
        await fetch(transfer, request, tmp_path / "f")

    transfer.configure(TransferSection(local_dir=shared))
    fetched = await fetch(transfer, request, tmp_path / "f", expected=5)
    assert (fetched.size, (tmp_path / "f").read_bytes()) == (5, b"local")
    for path in (tmp_path / "secret", shared / ".." / "secret", shared / "link", shared):
        with pytest.raises(TransferRefused):
            await fetch(transfer, _local(path, "get"), tmp_path / "f")
        with pytest.raises(TransferRefused):
            await transfer.upload(_local(path, "put"), tmp_path / "f", 5, "digest")
    await transfer.upload(_local(shared / "new" / "response", "put"), tmp_path / "f", 5, "digest")
    assert (shared / "new" / "response").read_bytes() == b"local"
    assert (tmp_path / "secret").read_bytes() == b"secret"


def _local(path: Path, operation: str) -> PresignedRequest:
    request = _request(
        {"type": "local", "filePath": str(path), "operation": operation}, operation.upper()
    )
    assert isinstance(request.backend, LocalBackend)
    return request


# The server's own routes


@pytest.fixture
async def connect(store: Store) -> AsyncIterator[Callable[..., Awaitable[ServerConnection]]]:
    made: list[ServerConnection] = []

    async def begin(token: str | None = "t0ken", **settings: Any) -> ServerConnection:
        section = ServerSection(**{"url": store.url, "request_timeout_seconds": 0.5, **settings})
        connection = ServerConnection(section, ConfiguredToken(token, settings.get("token_file")))
        await connection.open()
        made.append(connection)
        return connection

    yield begin
    for connection in made:
        await connection.close()


Connect = Callable[..., Awaitable[ServerConnection]]


async def test_the_token_goes_to_the_server_and_no_redirect_is_followed(
    store: Store, connect: Connect
) -> None:
    async def redirect(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    store.answer = redirect
    connection = await connect()

    with pytest.raises(NoContact, match="redirect"):
        await connection.call("POST", connection.url("commands", "leases"))
    assert len(store.seen) == 1
    assert store.seen[0][2]["authorization"] == "Bearer t0ken"
    assert store.seen[0][2]["user-agent"].startswith("arc-agent/")


async def test_ids_are_escaped_in_paths(store: Store, connect: Connect) -> None:
    connection = await connect(url=f"{store.url}/edge/v1/?key=k")
    await connection.call(
        "POST", connection.url("commands", "../a/b?c", "response", query={"lease": "x&y"})
    )

    assert store.seen[0][1] == "/edge/v1/commands/..%2Fa%2Fb%3Fc/response?key=k&lease=x%26y"


async def test_an_answer_that_arrived_while_the_loop_was_blocked_is_still_taken(
    connect: Connect,
) -> None:
    """A lease in it would be lost for its whole length."""

    def serve() -> None:
        peer, _ = listener.accept()
        peer.recv(65536)
        has_arrived.set()
        is_blocked.wait()
        peer.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            b'Content-Length: 13\r\n\r\n{"leases":[]}'
        )
        peer.recv(1)
        peer.close()

    has_arrived, is_blocked = threading.Event(), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    connection = await connect(url=f"http://127.0.0.1:{listener.getsockname()[1]}")
    serving = asyncio.create_task(asyncio.to_thread(serve))
    request = LeaseRequest(deployment_id="d")
    asking = asyncio.create_task(ask(connection, connection.url("x"), request, timeout_seconds=0.4))
    await asyncio.to_thread(has_arrived.wait)
    is_blocked.set()
    time.sleep(0.5)  # a handler blocks the loop past the time-out

    assert (await asking).leases == []
    await connection.close()
    await serving
    listener.close()


async def test_a_server_that_does_not_answer_is_given_up(store: Store, connect: Connect) -> None:
    async def hang(_request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    store.answer = hang
    connection = await connect()

    with pytest.raises(NoContact, match=r"no answer within 0\.1 s"):
        await connection.call("GET", connection.url("x"), timeout_seconds=0.1)


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("99999999", 300.0), ("soon", None)])
async def test_a_server_may_ask_for_patience(
    store: Store, connect: Connect, header: str, seconds: float | None
) -> None:
    async def busy(_request: web.Request) -> web.StreamResponse:
        return web.json_response(
            {"code": "RATE_LIMITED"}, status=429, headers={"Retry-After": header}
        )

    store.answer = busy
    connection = await connect()

    with pytest.raises(NoContact) as busy_error:
        await connection.call("GET", connection.url("x"))
    assert busy_error.value.retry_after == seconds
    assert busy_error.value.reason == "the server answered 429 RATE_LIMITED"


async def test_a_replaced_token_is_tried_at_once(
    store: Store, connect: Connect, tmp_path: Path
) -> None:
    async def check(request: web.Request) -> web.StreamResponse:
        good = request.headers["Authorization"] == "Bearer new"
        return web.Response(status=200 if good else 401)

    store.answer = check
    file = tmp_path / "token"
    file.write_text("old\n")
    connection = await connect(token_file=file)

    with pytest.raises(Refused):
        await connection.call("GET", connection.url("x"))
    assert len(store.seen) == 1
    file.write_text("new\n")
    assert (await connection.call("GET", connection.url("x"))).status == 200
    file.write_text("\n")  # being written just now: the old one stays
    assert (await connection.call("GET", connection.url("x"))).status == 200


async def test_a_proxy_of_the_environment_is_used_and_given_its_credentials(
    store: Store, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://user:pass@127.0.0.1:{store.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    connection = await connect(url="http://arc.example.com")
    await connection.call("GET", connection.url("x"))

    _, path, headers, _ = store.seen[0]
    assert path == "http://arc.example.com/v1/x"
    assert headers["proxy-authorization"] == "Basic " + base64.b64encode(b"user:pass").decode()


async def test_a_proxy_does_not_open_what_is_refused(
    store: Store, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{store.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    transfer = await make(server="http://arc.example.com")

    await fetch(transfer, presigned("http://blobs.example.com/b"), tmp_path / "f")
    with pytest.raises(HostRefused):
        await fetch(transfer, presigned("http://169.254.169.254/"), tmp_path / "f")
    with pytest.raises(HostRefused):
        await fetch(transfer, presigned("http://10.0.0.1/"), tmp_path / "f")

    assert [path for _, path, _, _ in store.seen] == ["http://blobs.example.com/b"]
