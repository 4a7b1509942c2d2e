"""A call is one request as handlers see it: arguments, query, body within limits, and caller."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Final, Protocol, TypeVar, cast

from aiohttp import HttpVersion11, hdrs, web
from multidict import CIMultiDictProxy

from arc_protocol.codec import decode
from arc_protocol.errors import (
    BadRequest,
    InvalidCommand,
    Unauthorized,
)
from arc_server.auth.callers import Caller
from arc_server.auth.revocations import Waits
from arc_server.http.base_urls import BaseUrls
from arc_server.http.body_reading import BodyMemory, Pace, read_chunks, too_large
from arc_server.http.limits import HttpLimits
from arc_server.http.queries import parse_query
from arc_server.ports.reach import NOTHING, Reach
from arc_server.service.waits import Wait

A = TypeVar("A", bound=web.StreamResponse)
T = TypeVar("T")

_HUNG_UP: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class CallConnection(Protocol):
    """The connection of a call."""

    wait: Wait | None
    """The wait of its request; ended when the client goes."""
    scheme: str
    """`http` or `https`."""
    is_proxy: bool
    """True if its peer is a trusted proxy."""

    def client_address(self, headers: CIMultiDictProxy[str]) -> str:
        """Return the address of a request's client, with IPv6 its /64; empty if unknown."""
        ...

    def keep_alive(self, val: bool, /) -> None:
        """Let the connection live on after the answer, and stop counting how long it is idle."""
        ...

    def trust(self, credential: str | None) -> None:
        """Keep the connection before those of strangers: a request has shown a good credential."""
        ...


class RequestWait:
    """The context in which a request waits.

    Entering and leaving raise ConnectionResetError when the client has gone, and Unauthorized when
    its token was revoked or has expired meanwhile.
    """

    # A class, since @contextmanager costs each request that waits two generators and a microsecond.
    __slots__ = ("_call", "_connection", "_wait", "_waits")

    def __init__(self, call: Call, waits: Waits) -> None:
        self._call = call
        self._waits = waits
        self._connection = call.connection
        self._wait = Wait()

    def __enter__(self) -> Wait:
        if self._call.is_cut_off:
            raise ConnectionResetError("the client went before its wait began")
        self._call.wait = self._connection.wait = self._wait
        self._connection.keep_alive(True)  # drops its timer for idle connections until the answer
        self._waits.add(self._call)
        return self._wait

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        call, wait = self._call, self._wait
        call.wait = self._connection.wait = None
        self._waits.discard(call)
        if wait.slept_seconds:
            call.slept_seconds += wait.slept_seconds
            call.woken_at = None if wait.has_run_out else wait.woken_at
        if error is None:
            wait.check()


class Call:
    """One request. The application makes it, one handler uses it."""

    __slots__ = (
        "_base_urls",
        "_body_bytes",
        "_body_memory",
        "_is_last",
        "_query",
        "_query_text",
        "_waits",
        "arguments",
        "caller",
        "epoch",
        "http",
        "is_signed",
        "limits",
        "reach",
        "slept_seconds",
        "wait",
        "woken_at",
    )

    def __init__(
        self,
        http: web.BaseRequest,
        arguments: Sequence[str],
        query: str,
        limits: HttpLimits,
        base_urls: BaseUrls,
        *,
        is_last: Callable[[], bool],
        waits: Waits,
        body_memory: BodyMemory,
    ) -> None:
        self.http = http
        self.arguments = arguments
        """The decoded segments of the path that are arguments of the handler."""
        self.caller: Caller | None = None
        """The caller; None for a signed query and for an open route."""
        self.reach = NOTHING
        """The bounds of the caller."""
        self.is_signed = False
        """True if the signature in the query let the request through."""
        self._query_text = query
        self._query: dict[str, str] | None = None
        self.limits = limits
        self._body_memory = body_memory
        self._body_bytes = 0
        self._base_urls = base_urls
        self._is_last = is_last
        self._waits = waits
        self.epoch = waits.epoch
        """The number of revocations seen before the caller was looked up."""
        self.wait: Wait | None = None
        """The wait of the handler, while it waits."""
        self.slept_seconds = 0.0
        """The time that it has waited on purpose."""
        self.woken_at: float | None = None
        """When its latest wait was ended by a wake-up, by the monotonic clock."""

    def sign_in(self, reach: Reach) -> None:
        """Let the request through by the signature in its query."""
        self.reach = reach
        self.is_signed = True

    @property
    def connection(self) -> CallConnection:
        """Return the connection that the request came on."""
        return cast("CallConnection", self.http.protocol)

    @property
    def client_address(self) -> str:
        """Return the client's address, with IPv6 its /64; empty if unknown."""
        return self.connection.client_address(self.http.headers)

    @property
    def base_url(self) -> str:
        """Return how URLs in the answer begin, up to /v1. Raises BadRequest for a bad Host."""
        connection = self.connection
        return self._base_urls.of(
            self.http.headers, connection.scheme, is_forwarded=connection.is_proxy
        )

    @property
    def is_cut_off(self) -> bool:
        """Return True if the connection has ended, so that what was not sent never will be."""
        return self.http.transport is None

    @property
    def is_gone(self) -> bool:
        """Return True if the client has gone.

        Asks the kernel, since the event loop may not have come to the end of the connection yet.
        """
        transport = self.http.transport
        if transport is None or transport.is_closing():
            return True
        handle: int = transport.get_extra_info("socket").fileno()
        if handle < 0:
            return True
        poll = select.poll()
        poll.register(handle, _HUNG_UP)
        return bool(poll.poll(0))

    @property
    def authorization(self) -> str | None:
        """Return the header that identified the caller; None if none was needed."""
        return None if self.caller is None else self.http.headers.get(hdrs.AUTHORIZATION)

    @property
    def ends_at(self) -> datetime | None:
        """Return when the token of the caller expires; None: never."""
        return None if self.caller is None else self.caller.ends_at

    def revoke(self, reason: str) -> None:
        """End the wait with a 401: the token of the caller is good no more."""
        if self.wait is not None:
            self.wait.end(Unauthorized(f"this token {reason} while the request waited"))

    def waiting(self) -> RequestWait:
        """Return a context with a wait, which ends when the client goes or its token ends."""
        return RequestWait(self, self._waits)

    async def pause(self, seconds: float) -> None:
        """Wait for some time. Raises as `waiting` does."""
        with self.waiting() as wait:
            await wait.until(asyncio.get_running_loop().create_future(), seconds)

    def finished(self, answer: A) -> A:
        """Return an answer ready to be sent: the last of its connection if the server stops."""
        if self._is_last():
            answer.force_close()
        return answer

    # query

    def query(self, name: str) -> str | None:
        """Return a field of the query; None if absent. Raises InvalidCommand."""
        if not self._query_text:
            return None
        if self._query is None:
            self._query = parse_query(self._query_text)
        return self._query.get(name)

    @property
    def query_names(self) -> Sequence[str]:
        """Return the names of the fields of the query, in order. Raises InvalidCommand."""
        self.query("")
        return tuple(self._query or ())

    def query_family(self, family: str) -> dict[str, str]:
        """Return the fields of the query whose names begin so, by the rest of their names."""
        return {
            name.removeprefix(family): self.query(name) or ""
            for name in self.query_names
            if name.startswith(family)
        }

    def check_query(self, *known: str, family: str | None = None) -> None:
        """Raise InvalidCommand for a field of the query that has no such name, nor begins so."""
        for name in self.query_names:
            if name not in known and (family is None or not name.startswith(family)):
                raise InvalidCommand(f"{name}: not a field of this request", field=name)

    # body

    async def message(self, kind: type[T], *, limit: int | None = None) -> T:
        """Return the body as a message of `kind`. `limit` in bytes lowers the configured limit.

        Raises InvalidCommand naming the field, PayloadTooLarge, RequestTimeout, BadRequest.
        """
        data = await self.body(limit)
        try:
            return decode(data, kind)
        except InvalidCommand:
            encoding = self.http.headers.get(hdrs.CONTENT_ENCODING, "identity")
            if encoding.lower() != "identity":
                raise InvalidCommand(
                    "Content-Encoding: send the body without encoding", field="Content-Encoding"
                ) from None
            raise

    async def body(self, limit: int | None = None) -> bytes:
        """Return the whole body of a JSON request, up to the limit. Raises as `chunks` does.

        Raises Unavailable when bodies take too much memory at the time.
        """
        content = self.http.content
        limit = min(limit or self.limits.max_body_bytes, self.limits.max_body_bytes)
        if content.is_eof():
            data = content.read_nowait()
            if len(data) > limit:
                raise too_large(limit)
            return data
        chunks: list[bytes] = []
        async for chunk in self.chunks(limit, total_seconds=self.limits.body_total_seconds):
            self._body_memory.take(self._body_owner, len(chunk))
            self._body_bytes += len(chunk)
            chunks.append(chunk)
        return b"".join(chunks)

    def release_body(self) -> None:
        """Count the memory of the body no longer. Called once the request is answered."""
        if self._body_bytes:
            self._body_memory.give_back(self._body_owner, self._body_bytes)
            self._body_bytes = 0

    def chunks(self, limit: int, *, total_seconds: float | None = None) -> AsyncIterator[bytes]:
        """Return the body as it arrives, up to `limit` bytes and within that time.

        Raises PayloadTooLarge (unread, if the body announces more), RequestTimeout when it arrives
        too slowly, BadRequest when it is malformed, ConnectionError when it breaks off.
        """
        length = self.http.content_length
        if length is not None and length > limit:
            raise too_large(limit)
        self._answer_expectation()
        return read_chunks(self.http, limit, Pace(self.limits, total_seconds))

    @property
    def _body_owner(self) -> str | None:
        return None if self.caller is None else self.caller.reach.credential

    def _answer_expectation(self) -> None:
        """Let a client send its body if it asked for permission first (RFC 9110, 10.1.1)."""
        expectation = self.http.headers.get(hdrs.EXPECT)
        if expectation is None:
            return
        if expectation.lower() != "100-continue":
            raise BadRequest("Expect: only 100-continue is supported", field="Expect")
        transport = self.http.transport
        if self.http.version == HttpVersion11 and transport is not None:
            transport.write(_CONTINUE)
