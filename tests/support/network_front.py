"""The fronts between agent and server in a real network: a forward proxy, a TLS front.

Both only pass on what they are given, to addresses of this machine.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.support.listening import stop_accepting
from tests.support.waiting import until

_CHUNK_BYTES = 64 * 1024


class _Listener:
    """A listening socket and its links; all of them are gone when it is left."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._host = "127.0.0.1"
        self._ssl: ssl.SSLContext | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._accept, self._host, self.port, ssl=self._ssl
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        await stop_accepting(self._server)
        await self.cut()
        # A handshake that its client broke off is no link yet: it ends by itself.
        await until(lambda: not _open_connections(self._server))

    async def cut(self) -> None:
        """Close every connection."""
        for link in list(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.create_task(self._guarded(reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    async def _guarded(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
        finally:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    async def _join(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, first: bytes
    ) -> None:
        """Pass on both ways until one side ends."""
        behind, onward = await asyncio.open_connection("127.0.0.1", port)
        try:
            onward.write(first)
            pumps = {
                asyncio.create_task(self._pump(reader, onward)),
                asyncio.create_task(self._pump(behind, writer)),
            }
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            onward.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()


def _open_connections(server: asyncio.Server | None) -> int:
    """The connections of a server, also in their handshake; asyncio has no public count of them."""
    clients = getattr(server, "_clients", None)  # from Python 3.13 on
    return len(clients) if clients is not None else getattr(server, "_active_count")  # noqa: B009


class ForwardProxy(_Listener):
    """An HTTP proxy with authentication, the only one to know the names of `hosts`.

    CONNECT opens a tunnel; any other method with an absolute URL is passed on.
    """

    def __init__(self, hosts: Mapping[str, int], *, user: str = "", password: str = "") -> None:
        super().__init__()
        self._hosts = hosts
        """The port of this machine at which each name is reached, instead of the URL's."""
        self.credentials = f"{user}:{password}" if user else ""
        self.idle_seconds: float | None = None
        """A tunnel or request on which nothing moves for so long is cut."""
        self.portal: bytes | None = None
        """What is answered instead of everything, while it is set."""
        self.asked: list[str] = []
        """`METHOD target` of each request that was let through."""
        self.refused = 0
        """How many had no credentials or others."""
        self.headers: list[str] = []
        """All heads as they came, passed on or not."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.headers.append(head)
            method, target, _ = head.split("\r\n")[0].split(" ")
            fields = _fields(head)
            if self.portal is not None:
                await reader.readexactly(int(fields.get("content-length", "0")))
                writer.write(self.portal)
                return await writer.drain()
            if self.credentials and not self._is_let_in(fields):
                self.refused += 1
                writer.write(
                    b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n"
                    b"Connection: close\r\n\r\n"
                )
                return await writer.drain()
            host = target.rpartition(":")[0] if method == "CONNECT" else urlsplit(target).hostname
            port = self._hosts.get((host or "").strip("[]"))
            if port is None:
                writer.write(b"HTTP/1.1 502 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return await writer.drain()
            self.asked.append(f"{method} {target}")
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                return await self._join(reader, writer, port, b"")
            await self._join(reader, writer, port, _passed_on(head, target))
            return None

    def _is_let_in(self, fields: Mapping[str, str]) -> bool:
        shown = fields.get("proxy-authorization", "").removeprefix("Basic ")
        return shown == base64.b64encode(self.credentials.encode()).decode()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(TimeoutError):
            while True:
                async with asyncio.timeout(self.idle_seconds):
                    data = await reader.read(_CHUNK_BYTES)
                if not data:
                    return
                writer.write(data)
                await writer.drain()


class TlsFront(_Listener):
    """Takes TLS off, and passes on to a port of this machine."""

    def __init__(self, port: int, context: ssl.SSLContext, *, host: str = "127.0.0.1") -> None:
        super().__init__()
        self._behind = port
        self._host = host
        self._ssl = context
        self.names: list[str] = []
        """The common name of each client certificate that was shown, "" for none."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shown = writer.get_extra_info("peercert") or {}
        subject = dict(field[0] for field in shown.get("subject", ()))
        self.names.append(subject.get("commonName", ""))
        await self._join(reader, writer, self._behind, b"")


def _fields(head: str) -> dict[str, str]:
    lines = head.split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _passed_on(head: str, target: str) -> bytes:
    """A request as the server behind wants it: a path, and no word to the proxy.

    It ends with its connection: one request, one link.
    """
    parts = urlsplit(target)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    first, *rest = head.split("\r\n")
    method, _, version = first.split(" ")
    kept = [
        line for line in rest if line and not line.lower().startswith(("proxy-", "connection:"))
    ]
    return "\r\n".join([f"{method} {path} {version}", *kept, "Connection: close", "", ""]).encode()
