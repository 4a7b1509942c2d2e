"""A small push target: a real HTTP server that answers as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer

from arc_protocol.codec import decode
from arc_protocol.messages.leases import Envelope
from tests.support.listening import stop_accepting, stop_serving

PATH = "/_alien/commands"

Answer = int | Callable[[Envelope], Awaitable[int]]


class PushWorker:
    """Takes envelopes. `answers` are given in order, the last one for ever."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[Answer] = [202]
        self.received: list[Envelope] = []
        self.headers: list[dict[str, str]] = []
        self.elsewhere: list[str] = []
        """Paths that were asked for and are not for envelopes."""
        self.busy = 0
        self.most_busy = 0

    async def take(self, request: web.Request) -> web.Response:
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            envelope = decode(await request.read(), Envelope)
            self.received.append(envelope)
            self.headers.append(dict(request.headers))
            answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
            status = answer if isinstance(answer, int) else await answer(envelope)
        finally:
            self.busy -= 1
        return web.Response(
            status=status, headers={"Location": "/elsewhere", "Set-Cookie": "stuck=yes"}
        )

    async def note(self, request: web.Request) -> web.Response:
        self.elsewhere.append(request.path)
        return web.Response(status=202)


@asynccontextmanager
async def push_worker() -> AsyncIterator[PushWorker]:
    """A worker on a free port."""
    worker = PushWorker("")
    app = web.Application()
    app.router.add_post(PATH, worker.take)
    app.router.add_route("*", "/{rest:.*}", worker.note)
    async with TestServer(app) as server:
        worker.url = str(server.make_url(PATH))
        yield worker
        await stop_serving(server.runner)


@asynccontextmanager
async def silent_listener() -> AsyncIterator[str]:
    """A URL where connections are accepted and nothing is ever answered."""
    writers: list[asyncio.StreamWriter] = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.read()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    yield f"http://{host}:{port}{PATH}"
    await stop_accepting(server)
    for writer in writers:
        writer.close()
    await server.wait_closed()
