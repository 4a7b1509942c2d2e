"""A TCP proxy that loses things: the network between two of our processes, in the test's hands."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from tests.support.listening import stop_accepting

_CHUNK_BYTES: Final = 64 * 1024


class Loss:
    """Replies to be lost: the next request that contains `marker` arrives, its reply does not."""

    def __init__(self, marker: bytes, times: int) -> None:
        self.marker = marker
        self.left = times
        self.happened = asyncio.Event()
        """Set once the first reply is lost: the server has acted, the client cannot know."""
        self.lost = 0


class Proxy:
    """Listens on a port of its own and passes on to one address."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._losses: list[Loss] = []
        self._passed = bytearray()
        self._news = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()
        self.url = ""
        self.requests = 0
        """How many requests have been passed on."""

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Cut everything and stop listening."""
        assert self._server is not None
        await stop_accepting(self._server)
        await self.cut()

    def lose_reply(self, marker: bytes, times: int = 1) -> Loss:
        """Lose the replies to the next `times` requests whose head contains `marker`.

        The connection is cut instead, once the server has begun to answer.
        """
        loss = Loss(marker, times)
        self._losses.append(loss)
        return loss

    async def passed(self, marker: bytes, seconds: float = 20.0) -> None:
        """Wait until a request that contains `marker` has been passed on."""
        async with asyncio.timeout(seconds):
            while marker not in self._passed:
                self._news.clear()
                await self._news.wait()

    def blackhole(self) -> None:
        """Let nothing through either way from now on, without closing a connection."""
        self._open.clear()

    def heal(self) -> None:
        """Everything gets through again, also what was on its way."""
        self._open.set()

    async def cut(self) -> None:
        """Close every connection."""
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.create_task(self._link(reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)
        link.add_done_callback(lambda _: writer.transport.abort())  # also if it never began

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        pumps: list[asyncio.Task[None]] = []
        losing: list[Loss] = []
        try:
            await self._open.wait()
            try:
                behind, onward = await asyncio.open_connection(self._host, self._port)
            except OSError:
                return
            writers.append(onward)
            pumps = [
                asyncio.create_task(self._requests(reader, onward, losing)),
                asyncio.create_task(self._replies(behind, writer, losing)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if not losing:
                await _close(writers)  # what was passed on still goes out
        finally:
            for pump in pumps:
                pump.cancel()
            for each in writers:
                each.transport.abort()
            await asyncio.gather(*pumps, return_exceptions=True)
            await _close(writers)

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: list[Loss]
    ) -> None:
        before = b""
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                await self._open.wait()
                self._mark(before + data, losing)
                before = data[-256:] if b"\r\n\r\n" not in data else b""
                writer.write(data)
                await writer.drain()
                self._passed += data[:1024]
                self.requests += data.count(b" HTTP/1.1\r\n")
                self._news.set()

    def _mark(self, data: bytes, losing: list[Loss]) -> None:
        for loss in self._losses:
            if loss.left > 0 and loss.marker in data:
                loss.left -= 1
                losing.append(loss)

    async def _replies(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: list[Loss]
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                await self._open.wait()
                if losing:
                    for loss in losing:
                        loss.lost += 1
                        loss.happened.set()
                    return
                writer.write(data)
                await writer.drain()


async def _close(writers: list[asyncio.StreamWriter]) -> None:
    """Close both sides and wait until they are."""
    for each in writers:
        each.close()
    for each in writers:
        with suppress(OSError):
            await each.wait_closed()
