"""Connections of clients: their time limits, and how they end."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from itertools import islice
from typing import Any, Final, cast

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDictProxy

from arc_protocol.errors import (
    ArcError,
    BadRequest,
    CommandsError,
    HeadersTooLarge,
    RequestTimeout,
    Unavailable,
)
from arc_server.http.answers import error_answer, raw_error
from arc_server.http.limits import HttpLimits
from arc_server.http.proxies import IPAddress, TrustedProxies, address_in, client_key
from arc_server.http.tls import TlsHandshake
from arc_server.ports.meter import NO_METER, TOO_MANY_CONNECTIONS, ServerMeter
from arc_server.service.waits import Wait

log = structlog.get_logger(__name__)

MAX_REFUSALS: Final = 200
"""Connections past the limit that get an answer at a time; more are cut off."""
REFUSAL_SECONDS: Final = 5.0
"""The time that a connection past the limit has to send its first bytes."""
LOG_SECONDS: Final = 60.0
"""The least time between two lines of the log about refused connections."""
LOOKED_AT: Final = 64
"""The connections that are looked at to find an idle one: the search goes on where it ended."""

_FORWARDED_FOR: Final = "X-Forwarded-For"
_TOO_MANY: Final = "Too many"
"""Begins the message of aiohttp's parser for a request with too many headers."""
_TIMED_OUT: Final = raw_error(RequestTimeout("the headers arrive too slowly"))
_TOO_LONG: Final = raw_error(HeadersTooLarge("the headers are too long together"))
_FULL: Final = raw_error(Unavailable("too many connections"))


class Connections:
    """All connections of a server, and the handlers whose clients have gone."""

    def __init__(self, meter: ServerMeter = NO_METER) -> None:
        self.meter: Final = meter
        self.open: dict[ClientConnection, None] = {}
        """In the order in which `make_room` looks at them."""
        self._strangers: dict[ClientConnection, None] = {}
        """Open connections that have shown no good credential, looked at before all others."""
        self._by_credential: dict[str, int] = {}
        """The number of open connections that have shown a credential first."""
        self.by_address: dict[str, int] = {}
        """The number of open connections of each address."""
        self.left_behind: set[asyncio.Task[None]] = set()
        """Handlers whose clients have gone. They run to their end."""
        self.handshakes: dict[TlsHandshake, str] = {}
        """TLS handshakes in progress, with their addresses, the oldest first."""
        self.refused = 0
        """The number of open connections past the limit."""
        self._unlogged = 0
        self._logged_at: float | None = None
        self._all_closed = asyncio.Event()
        self.is_closing = False
        """True once a server that stops takes no new request: connections made then are closed."""

    def opened(self, connection: ClientConnection) -> None:
        """Register a connection."""
        self.open[connection] = self._strangers[connection] = None
        self._count(connection.address)

    def closed(self, connection: ClientConnection, handling: asyncio.Task[None] | None) -> None:
        """Forget a connection; its handler goes on."""
        if connection in self.open:
            del self.open[connection]
            self._strangers.pop(connection, None)
            if connection.credential is not None:
                _count_down(self._by_credential, connection.credential)
            _count_down(self.by_address, connection.address)
        if handling is not None and not handling.done():
            self.left_behind.add(handling)
            handling.add_done_callback(self._ended)
        elif not self.open:
            self._all_closed.set()

    def handshake_begun(self, handshake: TlsHandshake, address: str) -> None:
        """Register a TLS handshake."""
        self.handshakes[handshake] = address
        self._count(address)

    def handshake_ended(self, handshake: TlsHandshake) -> None:
        """Forget a TLS handshake."""
        address = self.handshakes.pop(handshake, None)
        if address is not None:
            _count_down(self.by_address, address)
            self._note_end()

    def trust(self, connection: ClientConnection, credential: str | None, most: int) -> bool:
        """Keep a connection before those of strangers: it has shown a good credential.

        Return False, and leave it among them, if the credential has `most` connections already.
        """
        if credential is not None:
            count = self._by_credential.get(credential, 0)
            if count >= most:
                return False
            self._by_credential[credential] = count + 1
        self._strangers.pop(connection, None)
        return True

    def make_room(self, address: str | None = None) -> bool:
        """Close a connection of a stranger, or else an idle one; return False if there is none.

        With an address, close one of that address only. Connections are looked at in turns, so that
        a search costs little however many there are.
        """
        for connections in (self._strangers, self.open):
            for connection in list(islice(connections, LOOKED_AT)):
                if connection.is_spare and address in (None, connection.address):
                    connection.cut_off()
                    self.closed(connection, None)
                    return True
                connections[connection] = connections.pop(connection)
        return False

    def note_refusal(self, limit: str) -> None:
        """Count a refused connection. The log gets a line a minute, not one for each."""
        self.meter.refused(TOO_MANY_CONNECTIONS)
        self._unlogged += 1
        now = time.monotonic()
        if self._logged_at is None or now - self._logged_at >= LOG_SECONDS:
            log.warning("http.connections_refused", connections=self._unlogged, limit=limit)
            self._unlogged, self._logged_at = 0, now

    async def wait_closed(self, seconds: float) -> bool:
        """Wait until every connection and every handler has ended; False when time is up before."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._is_busy:
                    self._all_closed.clear()
                    await self._all_closed.wait()
        return not self._is_busy

    @property
    def _is_busy(self) -> bool:
        return bool(self.open or self.left_behind or self.handshakes)

    def _note_end(self) -> None:
        if not self._is_busy:
            self._all_closed.set()

    def _count(self, address: str) -> None:
        self.by_address[address] = self.by_address.get(address, 0) + 1

    def _ended(self, handling: asyncio.Task[None]) -> None:
        self.left_behind.discard(handling)
        self._note_end()


class ClientConnection(RequestHandler):
    """One client's connection: aiohttp's, with time limits and the errors of the protocol."""

    __slots__ = (
        "_connections",
        "_has_begun",
        "_head_bytes",
        "_head_since",
        "_limits",
        "_proxies",
        "_stalled_bytes",
        "_stalled_since",
        "address",
        "credential",
        "handshake",
        "is_proxy",
        "is_trusted",
        "peer",
        "scheme",
        "wait",
    )

    def __init__(
        self,
        server: web.Server,
        connections: Connections,
        limits: HttpLimits,
        proxies: TrustedProxies,
        **options: Any,
    ) -> None:
        super().__init__(server, **options)
        self._connections = connections
        self._limits = limits
        self._proxies = proxies
        self._head_since: float | None = None
        """Since when the server awaits the headers of a request; None during a request."""
        self._has_begun = False
        """True once some of those headers have arrived."""
        self._head_bytes = 0
        """Bytes of them that have arrived."""
        self.peer: IPAddress | None = None
        """The peer's address; None for a Unix socket."""
        self.address = ""
        """The peer's address, with IPv6 its /64; empty for a Unix socket."""
        self.is_proxy = False
        """True if the peer is a trusted proxy."""
        self.scheme = "http"
        self.handshake: TlsHandshake | None = None
        """The TLS handshake that it still counts as."""
        self.is_trusted = False
        """True once a request on it has shown a good credential."""
        self.credential: str | None = None
        """The credential by which it is trusted, if it has an id."""
        self._stalled_since: float | None = None
        self._stalled_bytes = 0
        self.wait: Wait | None = None
        """The wait of the request that is handled; ended when the client goes."""

    @property
    def is_idle(self) -> bool:
        """Return True while no request is being handled or queued."""
        is_waiting = self._waiter is not None or not self._request_count
        return is_waiting and not self._messages

    @property
    def was_served(self) -> bool:
        """Return True once a request has come on it."""
        return self._request_count > 0

    @property
    def is_spare(self) -> bool:
        """Return True if the connection may be closed for another one."""
        if not self.is_trusted:
            return True
        transport = self.transport
        return self.is_idle and (transport is None or not transport.get_write_buffer_size())

    def trust(self, credential: str | None) -> None:
        """Keep the connection before those of strangers: a request has shown a good credential."""
        if self.is_trusted:
            return
        most = self._limits.max_requests_per_token
        if self._connections.trust(self, credential, most):
            self.is_trusted = True
            self.credential = credential

    def cut_off(self) -> None:
        """Close the connection at once, also when its client does not read what it was sent."""
        transport = self.transport
        self.force_close()
        if transport is not None:
            transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.handshake is not None:
            self._connections.handshake_ended(self.handshake)
            self.handshake = None
        self._head_since = self._loop.time()
        self.peer = address_in(transport.get_extra_info("peername"))
        self.address = client_key(self.peer)
        self.is_proxy = self._proxies.trust(self.peer)
        if transport.get_extra_info("sslcontext") is not None:
            self.scheme = "https"
        is_crowded = (
            not self.is_proxy
            and self.address != ""
            and self._connections.by_address.get(self.address, 0)
            >= self._limits.max_connections_per_address
            and not self._connections.make_room(self.address)
        )
        self._connections.opened(self)
        if self._connections.is_closing:
            self.force_close()
            return
        if is_crowded and self.transport is not None:
            self._connections.note_refusal("http.max_connections_per_address")
            self.transport.write(_FULL)
            self.force_close()

    def client_address(self, headers: CIMultiDictProxy[str]) -> str:
        """Return the address of a request's client, with IPv6 its /64; empty if unknown."""
        if not self.is_proxy:
            return self.address
        forwarded_for = headers.getall(_FORWARDED_FOR, ())
        return client_key(self._proxies.client(self.peer, forwarded_for))

    def connection_lost(self, exc: BaseException | None) -> None:
        handling = self._task_handler
        super().connection_lost(exc)
        self._connections.closed(self, handling)
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
            self._head_bytes = 0
        elif data:
            self._has_begun = True
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.max_head_bytes and self.transport is not None:
                self._connections.meter.refused(HeadersTooLarge.code.lower())
                self.transport.write(_TOO_LONG)
                self.force_close()
            if self._head_since is None:
                self._head_since = self._loop.time()

    def watch(self, now: float) -> None:
        """Cut the client off if it is too slow to send its headers or to read its answer."""
        transport = self.transport
        if transport is None:
            return
        if self._head_since is not None and now - self._head_since > self._limits.header_seconds:
            if self._has_begun:
                self._connections.meter.refused(RequestTimeout.code.lower())
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
        error = _error_for(exc)
        self._connections.meter.refused(error.code.lower())
        answer = error_answer(error)
        answer.force_close()
        return answer

    def log_exception(self, *_: Any, **kw: Any) -> None:
        """Log at debug level: aiohttp reports as errors what peers do to their connections."""
        log.debug("http.connection_failed", reason=str(kw.get("exc_info")))

    def log_debug(self, *_: Any, **__: Any) -> None:
        """Log nothing."""


class Refusal(asyncio.Protocol):
    """A connection past the limit: it gets a 503 for its first bytes, and is closed."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        if self._connections.refused >= MAX_REFUSALS:
            self._transport.abort()
        self._connections.refused += 1
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(REFUSAL_SECONDS, self._transport.abort)

    def data_received(self, data: bytes) -> None:  # noqa: ARG002
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.write(_FULL)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._connections.refused -= 1
        if self._timer is not None:
            self._timer.cancel()


def _count_down(counts: dict[str, int], key: str) -> None:
    """Count one less of a key, and forget it at 0."""
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]


def _error_for(error: BaseException | None) -> ArcError:
    """Return the error for a request that could not be parsed."""
    if isinstance(error, LineTooLong):
        return HeadersTooLarge("the request line or a header is too long")
    if isinstance(error, HttpProcessingError) and error.message.startswith(_TOO_MANY):
        return HeadersTooLarge("too many headers")
    if isinstance(error, HttpProcessingError):
        return BadRequest("malformed HTTP request")
    return CommandsError("internal error; see the log of the server")
