"""The HTTP server accepts connections, watches them, and drains them when it stops."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from functools import partial
from typing import Final

import structlog
from aiohttp import web, web_protocol
from aiohttp.web_protocol import RequestHandler

from arc_server.http.application import Application
from arc_server.http.connections import ClientConnection, Connections, Refusal
from arc_server.http.limits import HttpLimits
from arc_server.http.proxies import TrustedProxies, client_key
from arc_server.http.routing import Route
from arc_server.http.tls import ServerTls, TlsHandshake, TlsListener
from arc_server.ports.meter import NO_METER, ServerMeter

log = structlog.get_logger(__name__)

WATCH_SECONDS: Final = 1.0
"""The interval at which connections are checked for clients that are too slow."""
LINGER_SECONDS: Final = 2.0
"""The time in which the rest of a refused body is read, so that the client sees the answer."""
FIRST_REQUEST_SECONDS: Final = 1.0
"""The time that a connection which has sent nothing yet has for its request when the server stops:
it may have been accepted at the last moment, and the client would see it refused."""
CUT_OFF_SECONDS: Final = 0.5
"""The time that handlers that are cut off have to release undelivered leases."""
BACKLOG: Final = 4096
"""Connections that the kernel holds until they are accepted: all agents may come back at once."""
PARSED_AHEAD: Final = 2
"""Requests of one connection that are parsed while another is handled. aiohttp's own 32 let a
connection without a token hold 60 MB of headers."""
KEEP_ALIVE: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
"""Seconds and counts after which the kernel gives up a peer that has vanished."""
READ_BUFFER_BYTES: Final = 1 << 17


class HttpServer(web.Server):
    """The listener, and all its connections. Requests go to the application."""

    def __init__(
        self, application: Application, limits: HttpLimits, meter: ServerMeter = NO_METER
    ) -> None:
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
        web_protocol.MAX_MSG_QUEUE_SIZE = PARSED_AHEAD  # read as each connection is made
        self.limits = limits
        self._proxies = TrustedProxies(limits.trusted_proxies)
        self._application = application
        self._clients = Connections(meter)
        self._listeners: list[asyncio.Server | TlsListener] = []
        self._watching: asyncio.Task[None] | None = None
        _check_limits(self())

    def __call__(self) -> ClientConnection:
        """Return the protocol for a connection that was just accepted."""
        return ClientConnection(
            self, self._clients, self.limits, self._proxies, loop=self._loop, **self._kwargs
        )

    def accept(self) -> asyncio.BaseProtocol:
        """Return the protocol for a new connection.

        If there are too many, an idle one is closed for it. If none is idle, it is refused.
        """
        return self() if self._has_room() else Refusal(self._clients)

    def accept_tls(self, tls: ServerTls, handshake: TlsHandshake) -> None:
        """Begin the handshake of a new connection, or cut it off if there are too many."""
        clients, address = self._clients, client_key(handshake.peer)
        is_crowded = (
            clients.by_address.get(address, 0) >= self.limits.max_connections_per_address
            and not self._proxies.trust(handshake.peer)
            and not clients.make_room(address)
        )
        if is_crowded:
            clients.note_refusal("http.max_connections_per_address")
        if is_crowded or not self._has_room():
            handshake.abort()
            return
        connection = self()
        connection.handshake = handshake
        clients.handshake_begun(handshake, address)
        handshake.begin(tls.context, connection, clients.handshake_ended)

    async def listen(self, listener: socket.socket, tls: ServerTls | None = None) -> None:
        """Serve on a bound socket. Raises OSError."""
        if listener.family in (socket.AF_INET, socket.AF_INET6):  # accepted sockets inherit these
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEP_ALIVE:
                listener.setsockopt(socket.IPPROTO_TCP, option, value)
        if tls is not None:
            listener.setblocking(False)
            listener.listen(BACKLOG)
            self._listeners.append(TlsListener(listener, partial(self.accept_tls, tls)))
        else:
            self._listeners.append(
                await self._loop.create_server(self.accept, sock=listener, backlog=BACKLOG)
            )
        if self._watching is None:
            self._watching = self._loop.create_task(self._watch())

    def stop_listening(self) -> None:
        """Accept no more, close idle connections now and the others after their next answer.

        Connections that have sent no request yet are closed a second later.
        """
        while self._listeners:
            self._listeners.pop().close()
        self._application.is_draining = True
        self._close_idle(only_served=True)
        self._loop.call_later(FIRST_REQUEST_SECONDS, self._close_idle)

    async def close(self, drain_seconds: float) -> None:
        """Let requests in progress end within that time, then cut off those that are left."""
        self.stop_listening()
        if not await self._clients.wait_closed(drain_seconds):
            log.warning("http.drain_timed_out", connections=self.open_connections)
        self._close_idle()
        await self.shutdown(timeout=CUT_OFF_SECONDS)
        await self._clients.wait_closed(CUT_OFF_SECONDS)
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait((self._watching,))

    @property
    def routes(self) -> Sequence[Route]:
        """Return every route that is served."""
        return self._application.router.routes

    @property
    def open_connections(self) -> int:
        """Return the number of open connections, without refused ones."""
        return len(self._clients.open)

    @property
    def handshakes(self) -> int:
        """Return the number of TLS handshakes in progress."""
        return len(self._clients.handshakes)

    @property
    def unanswered(self) -> int:
        """Return the number of handlers that run on though their clients have gone."""
        return len(self._clients.left_behind)

    def _close_idle(self, *, only_served: bool = False) -> None:
        """Close idle connections; unless `only_served`, new ones too, and those in a handshake."""
        self._clients.is_closing = not only_served
        for connection in list(self._clients.open):
            if connection.is_idle and (connection.was_served or not only_served):
                connection.force_close()
        if not only_served:
            for handshake in list(self._clients.handshakes):
                handshake.abort()

    def _has_room(self) -> bool:
        """Return True for one more connection, if need be in place of another."""
        clients = self._clients
        if len(clients.open) + len(clients.handshakes) < self.limits.max_connections:
            return True
        if clients.handshakes:  # the oldest has had the longest time
            oldest = next(iter(clients.handshakes))
            clients.handshake_ended(oldest)
            oldest.abort()
            return True
        if clients.make_room():
            return True
        clients.note_refusal("http.max_connections")
        return False

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            now = self._loop.time()
            for connection in list(self._clients.open):
                connection.watch(now)


def _check_limits(connection: RequestHandler) -> None:
    """Raise RuntimeError if this version of aiohttp does not apply a limit that it was given."""
    if getattr(connection, "_max_msg_queue_size", None) != PARSED_AHEAD:
        raise RuntimeError("this version of aiohttp does not bound the requests that it parses")
