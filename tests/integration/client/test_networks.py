"""TLS and proxies between `arc` and its server: what the errors name."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from arc_client.cli import session
from tests.support.certificates import DAY, Authority, Issued
from tests.support.shell import arc


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person who does not wait for a server to come back."""
    monkeypatch.setattr(session, "RETRY_SECONDS", 0.5)


@asynccontextmanager
async def listening(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """Something that accepts connections; its port."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


Issue = Callable[[Authority], Issued]
REFUSED: Mapping[str, tuple[Issue, bool, str]] = {
    "private": (
        lambda ca: ca.issue("arc", ["127.0.0.1"]),
        False,
        "its issuer is not trusted here; if that is a private CA, or a proxy that inspects TLS,"
        " name its certificate in --ca-file",
    ),
    "of another host": (
        lambda ca: ca.issue("arc", ["arc.corp"]),
        True,
        "it is for arc.corp, not for 127.0.0.1",
    ),
    "expired": (
        lambda ca: ca.issue("arc", ["127.0.0.1"], begins=-3 * DAY, ends=-DAY),
        True,
        "it has expired; this host's clock says ",
    ),
}


@pytest.mark.parametrize("which", REFUSED)
async def test_a_refused_certificate_is_named_with_what_to_do(tmp_path: Path, which: str) -> None:
    authority = Authority(tmp_path / "ca")
    issue, is_trusted, why = REFUSED[which]
    trusting = {"ARC_CA_FILE": str(authority.ca_file)} if is_trusted else {}

    async with listening(close, authority.serving(issue(authority))) as port:
        ended = await arc("list", url=f"https://127.0.0.1:{port}", **trusting)

    assert ended.code == 2
    assert ended.err.startswith("error: TLS: the certificate of 127.0.0.1 is refused: ")
    assert why in ended.err
    assert "; it is: subject O=Tests, CN=arc, issuer O=Tests, CN=Test CA" in ended.err


async def test_a_server_that_does_not_speak_tls_is_named() -> None:
    async with listening(answer_plainly) as port:
        ended = await arc("list", url=f"https://127.0.0.1:{port}")

    assert ended.code == 3
    assert "TLS: the other side does not speak TLS: is its URL http:// and not https://?" in (
        ended.err
    )


async def test_a_server_that_wants_a_client_certificate_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    context = authority.serving(authority.issue("arc", ["127.0.0.1"]), wants_client=True)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:  # asyncio's own servers hang up without the alert
            while True:
                try:
                    accepted, _ = server.accept()
                except OSError:  # it was shut down
                    return
                accepted.settimeout(10)
                with accepted.dup() as raw:
                    with suppress(OSError):
                        context.wrap_socket(accepted, server_side=True).close()
                    while raw.recv(65536):  # or the alert is lost in a reset
                        pass

        refusing = asyncio.create_task(asyncio.to_thread(refuse))
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        ended = await arc("list", url=url, ARC_CA_FILE=str(authority.ca_file))
        server.shutdown(socket.SHUT_RDWR)
        await refusing

    assert ended.code == 3
    assert "TLS: the other side wants a client certificate\n" in ended.err


async def answer_plainly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ("407 Proxy Authentication Required", "does not accept the credentials, or wants some"),
        ("403 Forbidden", "does not allow it (403)"),
        ("502 Bad Gateway", "answered 502"),
    ],
)
async def test_a_proxy_that_refuses_is_named(status: str, why: str) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
        writer.close()

    async with listening(refuse) as port:
        proxy = f"http://user:secret@127.0.0.1:{port}"
        ended = await arc("list", url="https://arc.example", HTTPS_PROXY=proxy, https_proxy=proxy)

    assert ended.code == 3
    assert f"the proxy {proxy.replace('user:secret@', '')} {why}" in ended.err
    assert "secret" not in ended.err
    assert "Is the server running" not in ended.err


async def test_a_proxy_that_is_not_there_is_named() -> None:
    proxy = "http://127.0.0.1:9"

    ended = await arc("list", url="https://arc.example", HTTPS_PROXY=proxy, https_proxy=proxy)

    assert ended.code == 3
    assert "cannot connect to the proxy 127.0.0.1:9: Connection refused" in ended.err
