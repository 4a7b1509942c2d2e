"""A scripted server that also lies about HTTP itself, and a bystander that must never hear of it.

What it says is raw bytes where HTTP libraries would not let a test say it.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from aiohttp import web

from tests.support.scripted_server import ScriptedServer

Lie = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HostileServer(ScriptedServer):
    """`answers` are given to the next lease requests, `lies` to GETs of a blob, by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: deque[Lie] = deque()
        self.lies: dict[str, Lie] = {}
        self.response_lies: deque[Lie] = deque()

    async def _leases(self, request: web.Request, body: bytes) -> web.StreamResponse:
        with suppress(TimeoutError):
            await self._changes.until(
                lambda: bool(self.answers or self._queue), json.loads(body).get("waitSeconds", 0)
            )
        if self.answers:
            return await self.answers.popleft()(request)
        return await super()._leases(request, body)

    async def _get_blob(self, request: web.Request, body: bytes) -> web.StreamResponse:
        lie = self.lies.get(request.path.removeprefix("/blobs/"))
        return await (lie(request) if lie is not None else super()._get_blob(request, body))

    async def _response(self, request: web.Request, body: bytes) -> web.StreamResponse:
        if self.response_lies:
            return await self.response_lies.popleft()(request)
        return await super()._response(request, body)

    def answer(self, lie: Lie) -> None:
        """Say this to the lease request that waits, or to the next."""
        self.answers.append(lie)
        self._tell()


class Bystander:
    """A service on this machine that has nothing to do with it all: it counts who comes."""

    def __init__(self) -> None:
        self.visits: list[bytes] = []
        self.url = ""
        self._server: asyncio.Server | None = None

    async def start(self) -> Bystander:
        """Listen."""
        self._server = await asyncio.start_server(self._visited, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def stop(self) -> None:
        """Be gone."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _visited(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.read(64 * 1024)
        self.visits.append(head)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n1")
        await writer.drain()
        writer.close()


def raw(*parts: bytes, hangs: bool = False) -> Lie:
    """An answer byte for byte, then the end of the connection, or silence."""

    async def lie(request: web.Request) -> web.StreamResponse:
        transport: Any = request.transport
        for part in parts:
            transport.write(part)
        if hangs:
            await asyncio.sleep(30)
        transport.close()
        return web.Response()

    return lie


def says(body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> Lie:
    """A well-formed answer."""

    async def lie(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, status=status, headers=headers)

    return lie


def endless(chunk: bytes, headers: dict[str, str] | None = None) -> Lie:
    """Send an answer that goes on as long as the client reads."""

    async def lie(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        try:
            while True:
                await response.write(chunk)
        except (ConnectionError, RuntimeError):
            return response

    return lie
