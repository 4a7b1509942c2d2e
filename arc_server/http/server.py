"""The HTTP server accepts connections, holds them to limits, and drains them when it stops."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import RequestHandler

from arc_protocol.errors import (
    ArcError,
    BadRequest,
    CommandsError,
    HeadersTooLarge,
    RequestTimeout,
    Unavailable,
)
from arc_server.http.answers import error_answer, raw_error
from arc_server.http.application import Application
from arc_server.http.limits import HttpLimits
from arc_server.service.waits import Wait

log = structlog.get_logger(__name__)

WATCH_SECONDS: Final = 1.0
"""How often connections are checked for clients that are too slow."""
LINGER_SECONDS: Final = 5.0
"""How long the rest of a refused body is read, so that the client gets to see the answer."""
CUT_OFF_SECONDS: Final = 0.5
"""How long handlers that are cut off have to give back what they could not deliver."""
BACKLOG: Final = 1024
"""Connections that the kernel holds until they are accepted."""
READ_BUFFER_BYTES: Final = 1 << 17
MAX_REFUSALS: Final = 200
"""Connections past the limit that get an answer at a time; more are cut off."""
REFUSAL_SECONDS: Final = 5.0

_TOO_MANY: Final = "Too many"
"""Begins the message of aiohttp's parser for a request with too many headers."""
_TIMED_OUT: Final = raw_error(RequestTimeout("the headers arrive too slowly"))
_FULL: Final = raw_error(Unavailable("too many connections"))


class ClientConnection(RequestHandler):
    """One client's connection: aiohttp's, with time limits and the errors of the protocol."""

    __slots__ = (
        "_has_begun",
        "_head_since",
        "_limits",
        "_server",
        "_stalled_bytes",
        "_stalled_since",
        "wait",
    )

    def __init__(self, server: HttpServer, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        self._limits = server.limits
        self._head_since: float | None = None
        """Since when the server awaits the headers of a request; None during a request."""
        self._has_begun = False
        """True once some of those headers have arrived."""
        self._stalled_since: float | None = None
        self._stalled_bytes = 0
        self.wait: Wait | None = None
        """The wait of the request that is handled; ended when the client goes."""

    @property
    def is_idle(self) -> bool:
        """True while no request is being handled or queued."""
        is_waiting = self._waiter is not None or not self._request_count
        return is_waiting and not self._messages

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._head_since = self._loop.time()
        self._server.opened(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        handling = self._task_handler
        super().connection_lost(exc)
        self._server.closed(self, handling)
        is_answered = self._current_request is None  # it reads the rest of a body that never comes
        if self.wait is not None:
            self.wait.end(ConnectionResetError("the client has gone"))
        elif handling is not None and is_answered:
            handling.cancel()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.is_idle:
            self._head_since = None
            self._has_begun = False
        elif data:
            self._has_begun = True
            if self._head_since is None:
                self._head_since = self._loop.time()

    def watch(self, now: float) -> None:
        """Cut the client off if it is too slow to send its headers or to read its answer."""
        transport = self.transport
        if transport is None:
            return
        if self._head_since is not None and now - self._head_since > self._limits.header_seconds:
            if self._has_begun:
                transport.write(_TIMED_OUT)
            self.force_close()
            return
        if not self.writing_paused:
            self._stalled_since = None
            return
        unread: int = transport.get_write_buffer_size()
        if self._stalled_since is None or unread != self._stalled_bytes:
            self._stalled_since, self._stalled_bytes = now, unread
        elif now - self._stalled_since > self._limits.write_seconds:
            log.info("http.reader_stalled", unread_bytes=unread)
            transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,  # noqa: ARG002  # the exception says more
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> web.StreamResponse:
        """Return the answer for a request that aiohttp could not parse."""
        if request.writer.output_size > 0:
            raise ConnectionResetError("the answer failed halfway")
        answer = error_answer(_error_for(exc))
        answer.force_close()
        return answer

    def log_exception(self, *_: Any, **kw: Any) -> None:
        """Log at debug level: aiohttp reports as errors what peers do to their connections."""
        log.debug("http.connection_failed", reason=str(kw.get("exc_info")))

    def log_debug(self, *_: Any, **__: Any) -> None:
        """Log nothing."""


class Refusal(asyncio.Protocol):
    """A connection past the limit: it gets a 503 for its first bytes, and is closed."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._server.refusals >= MAX_REFUSALS:
            transport.abort()
        self._server.refusals += 1
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(REFUSAL_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:  # noqa: ARG002
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.write(_FULL)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._server.refusals -= 1
        if self._timer is not None:
            self._timer.cancel()


class HttpServer(web.Server):
    """The listener, and all its connections. Requests go to the application."""

    def __init__(self, application: Application, limits: HttpLimits) -> None:
        super().__init__(
            application.handle,  # pyright: ignore[reportArgumentType]  # aiohttp's own alias
            handler_cancellation=False,  # a client that goes ends waits only
            keepalive_timeout=limits.keep_alive_seconds,
            max_line_size=limits.max_line_bytes,
            max_field_size=limits.max_header_bytes,
            max_headers=limits.max_headers,
            lingering_time=LINGER_SECONDS,
            read_bufsize=READ_BUFFER_BYTES,
            auto_decompress=False,
            access_log=None,
        )
        self.limits = limits
        self.refusals = 0
        """How many connections past the limit are open."""
        self._application = application
        self._open: set[ClientConnection] = set()
        self._left_behind: set[asyncio.Task[None]] = set()
        """Handlers whose clients have gone. They run to their end."""
        self._all_closed = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._watching: asyncio.Task[None] | None = None

    def __call__(self) -> RequestHandler:
        """Return the protocol for a connection that was just accepted."""
        return ClientConnection(self, loop=self._loop, **self._kwargs)

    def accept(self) -> asyncio.BaseProtocol:
        """Return the protocol for a new connection: a refusal when there are too many."""
        return self() if len(self._open) < self.limits.max_connections else Refusal(self)

    async def listen(self, listener: socket.socket) -> None:
        """Serve on a bound socket. Raises OSError."""
        self._listener = await self._loop.create_server(self.accept, sock=listener, backlog=BACKLOG)
        self._watching = self._loop.create_task(self._watch())

    def stop_listening(self) -> None:
        """Accept no more, close idle connections now and the others after their next answer."""
        if self._listener is not None:
            self._listener.close()
        self._application.is_draining = True
        for connection in list(self._open):
            if connection.is_idle:
                connection.force_close()

    async def close(self, drain_seconds: float) -> None:
        """Let requests in progress end within that time, then cut off those that are left."""
        self.stop_listening()
        if not await self._wait_closed(drain_seconds):
            log.warning("http.drain_timed_out", connections=len(self._open))
        await self.shutdown(timeout=CUT_OFF_SECONDS)
        await self._wait_closed(CUT_OFF_SECONDS)
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait((self._watching,))

    async def _wait_closed(self, seconds: float) -> bool:
        """Wait until every connection and every handler has ended; False when time is up before."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._open or self._left_behind:
                    self._all_closed.clear()
                    await self._all_closed.wait()
        return not (self._open or self._left_behind)

    @property
    def open_connections(self) -> int:
        """How many connections are open, without refused ones."""
        return len(self._open)

    @property
    def unanswered(self) -> int:
        """How many handlers run on though their clients have gone."""
        return len(self._left_behind)

    def opened(self, connection: ClientConnection) -> None:
        """Register a connection. Called by the connection."""
        self._open.add(connection)

    def closed(self, connection: ClientConnection, handling: asyncio.Task[None] | None) -> None:
        """Forget a connection; its handler goes on. Called by the connection."""
        self._open.discard(connection)
        if handling is not None and not handling.done():
            self._left_behind.add(handling)
            handling.add_done_callback(self._ended)
        elif not self._open:
            self._all_closed.set()

    def _ended(self, handling: asyncio.Task[None]) -> None:
        self._left_behind.discard(handling)
        if not self._open and not self._left_behind:
            self._all_closed.set()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            now = self._loop.time()
            for connection in list(self._open):
                connection.watch(now)


def _error_for(error: BaseException | None) -> ArcError:
    """Return the error for a request that could not be parsed."""
    if isinstance(error, LineTooLong):
        return HeadersTooLarge("the request line or a header is too long")
    if isinstance(error, HttpProcessingError) and error.message.startswith(_TOO_MANY):
        return HeadersTooLarge("too many headers")
    if isinstance(error, HttpProcessingError):
        return BadRequest("malformed HTTP request")
    return CommandsError("internal error; see the log of the server")
