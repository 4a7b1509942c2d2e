"""Connection is lean HTTP/1.1, so that the driver of a benchmark is not what it measures."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final, cast
from urllib.parse import urlsplit

_END_OF_HEAD: Final = b"\r\n\r\n"


class Connection(asyncio.Protocol):
    """A connection keeps alive and has one request at a time. Answers carry Content-Length."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._buffer = b""
        self._need = -1
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, base_url: str, tls: ssl.SSLContext | None = None) -> Connection:
        """Connect to the host of `base_url`; `tls` for https."""
        parts = urlsplit(base_url)
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: cls(parts.netloc), parts.hostname, parts.port, ssl=tls
        )
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Fail the request that waits."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        """Complete the request that waits when its answer is whole."""
        buffer = self._buffer = self._buffer + data if self._buffer else data
        if self._need < 0:
            end = buffer.find(_END_OF_HEAD)
            if end < 0:
                return
            head = buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 : head.find(b"\r", at) if b"\r" in head[at:] else end])
            self._need = end + 4 + length
            self._body_at = end + 4
        if len(buffer) < self._need:
            return
        answer = (int(buffer[9:12]), buffer[self._body_at : self._need])
        self._buffer, self._need = buffer[self._need :], -1
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    async def request(
        self, method: str, path: str, body: bytes = b"", token: str = ""
    ) -> tuple[int, bytes]:
        """Send a request; return the status and the body of its answer.

        Raises ConnectionResetError when the server has closed the connection.
        """
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n{authorization}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        assert self._transport is not None
        if self._transport.is_closing():
            raise ConnectionResetError("the server has closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(head.encode() + body)
        return await self._answer

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()
