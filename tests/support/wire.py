"""A connection to the server, byte by byte."""

from __future__ import annotations

import asyncio
import json

from tests.support.running_server import Client

HOST = "Host: arc.example\r\n"


class Wire:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, client: Client) -> Wire:
        host, _, port = client.server.url.removeprefix("http://").rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def send(self, data: bytes | str) -> Wire:
        self.writer.write(data if isinstance(data, bytes) else data.encode("latin-1"))
        await self.writer.drain()
        return self

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers in lower case, body."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(first.split()[1]), headers, body

    async def error(self) -> tuple[int, str]:
        """The next answer, an error with the JSON body: status and code."""
        status, headers, body = await self.answer()
        assert headers["content-type"] == "application/json"
        error = json.loads(body)
        assert error["httpStatusCode"] == status
        assert isinstance(error["retryable"], bool)
        return status, error["code"]

    async def is_closed(self) -> bool:
        """Wait for the end of the connection; nothing may come before it."""
        try:
            return await self.reader.read() == b""
        except ConnectionResetError:
            return True

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionResetError:
            return


def authorized(client: Client, head: str, body: bytes = b"") -> bytes:
    """A request with the client's token."""
    lines = f"{head}\r\n{HOST}Authorization: Bearer {client.token}\r\n"
    return f"{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body
