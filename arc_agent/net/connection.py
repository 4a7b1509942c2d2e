"""The connection to the server: requests with the token, time-outs, and the policy of retries.

The bearer token goes to the configured origin and nowhere else: every URL is built here from that
origin, and no redirect is followed. Proxy and TLS are the business of net/routes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec
from yarl import URL

from arc_agent.config.addresses import base_url
from arc_agent.config.sections import ServerSection
from arc_agent.net.routes import Routes
from arc_agent.net.token import Bearer
from arc_agent.version import __version__
from arc_protocol.codec import UNREADABLE
from arc_protocol.lifecycle import full_jitter
from arc_runtime.network.allowed_hosts import PeerResponse
from arc_runtime.network.encodings import unasked_encoding
from arc_runtime.network.http_dates import http_date
from arc_runtime.startup.late_module import late_module

if TYPE_CHECKING:
    import tenacity
else:
    tenacity = late_module("tenacity")  # only a transfer of a large body needs it

T = TypeVar("T")

USER_AGENT: Final = f"arc-agent/{__version__}"
"""Never `alien-agent…`: servers take that for a 1.x agent, which cannot renew leases."""
_MAX_RETRY_AFTER_SECONDS: Final = 300.0
_MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024
"""A lease answer may embed 1,000 envelopes of 150 kB; a larger answer is an error."""
_MAX_PLAIN_BYTES: Final = 8 * 1024 * 1024
"""The bound of all answers but those to lease requests; 10,000 renewed leases are 2 MB."""
_MAX_TOLD_CHARS: Final = 200
"""The most of the server's own words that a reason repeats."""
_LATE_SECONDS: Final = 1.0
"""The time past a request's time-out in which an answer is still read. It may have arrived while a
handler blocked the event loop, and a lease in it would be lost for the lease's whole length."""
_CUT: Final = (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, ConnectionResetError)
_PROXY_REFUSED: Final = 407


class NoContact(Exception):
    """A request brought no usable answer: a transport error, a time-out, 408, 429, 5xx, or an
    answer that is not the server's.

    `retry_after` is the wait that the server asks for, in seconds. `was_cut` is True if an open
    connection was closed before the answer. `code` and `detail` are the code and the reason in the
    server's error body.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        was_cut: bool = False,
        detail: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.retry_after = retry_after
        self.was_cut = was_cut
        self.detail = detail
        self.code = code


class NoAnswer(NoContact):
    """No answer came within the time-out."""


class Refused(NoContact):
    """The server answered 401 or 403: it does not accept the token for this request."""


class Answer(msgspec.Struct, frozen=True):
    """An answer of the server with a final status."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    peer: str | None = None
    """The address that it came from; None behind a proxy."""

    @property
    def is_page(self) -> bool:
        """Return True for a web page, which comes from a proxy or portal rather than the server."""
        return self.headers.get("Content-Type", "").lower().startswith("text/html")

    @property
    def is_message(self) -> bool:
        """Return True for a success in JSON, which a neighbour at the same name does not send."""
        kind = self.headers.get("Content-Type", "").lower()
        return self.status == 200 and kind.startswith("application/json")

    def server_now(self) -> float | None:
        """Return the server's time as POSIX time; None when the answer has no date."""
        date = self.headers.get("Date")
        return None if date is None else _posix_time(date)


class ServerConnection:
    """A session with the server. Each event loop has its own: the main one and the heartbeat's."""

    def __init__(
        self, settings: ServerSection, token: Bearer, routes: Routes | None = None
    ) -> None:
        """Use `routes`, or those of the environment. Raises what `Routes` raises."""
        self._settings = settings
        self._routes = routes or Routes(settings)
        self._token = token
        self._base, self._query = base_url(settings.url or "")
        self._session: aiohttp.ClientSession | None = None

    @property
    def is_anonymous(self) -> bool:
        """Return True if requests carry no token."""
        return self._token.value is None

    async def open(self) -> None:
        """Open the session in the running loop."""
        self._session = aiohttp.ClientSession(
            connector=self._routes.connector(),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=_timeouts(self._settings),
            headers={
                "User-Agent": USER_AGENT,
                "Accept": "application/json",
                "Accept-Encoding": "identity",
            },
            auto_decompress=False,
            response_class=PeerResponse,
            raise_for_status=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def url(self, *path: str, query: Mapping[str, str] | None = None) -> str:
        """Return the URL of a route: `url("commands", "leases")`. Segments are escaped."""
        joined = "/".join(quote(segment, safe="") for segment in path)
        own = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in (query or {}).items())
        tail = self._query
        if own:
            tail = f"{tail}&{own}" if tail else f"?{own}"
        return f"{self._base}/v1/{joined}{tail}"

    async def call(
        self,
        method: str,
        url: str,
        message: msgspec.Struct | bytes | None = None,
        *,
        timeout_seconds: float | None = None,
        max_bytes: int = _MAX_PLAIN_BYTES,
    ) -> Answer:
        """Send a request and return the answer. If the token was replaced, try a second time.

        Raises Refused on 401 and 403, NoContact when there is no usable answer.
        """
        body = message if isinstance(message, bytes) else b""
        if isinstance(message, msgspec.Struct):
            body = msgspec.json.encode(message)
        seconds = timeout_seconds or self._settings.request_timeout_seconds
        await self._token.ready()
        used = self._token.value
        try:
            answer = await self._send(method, url, body, seconds, max_bytes)
        except Refused:
            if not await self._token.refused(used):
                raise
            answer = await self._send(method, url, body, seconds, max_bytes)
        if answer.is_message:
            self._routes.server_addresses.add(answer.peer)
        return answer

    async def answers(self) -> bool:
        """Return True if an HTTP server answers at the server's address."""
        try:
            await self._send("GET", f"{self._base}/healthz", b"", 5.0)
        except NoContact as error:
            status = error.status
            return status is not None and status < 500 and status != _PROXY_REFUSED
        return True

    async def _send(
        self,
        method: str,
        url: str,
        body: bytes,
        seconds: float,
        max_bytes: int = _MAX_PLAIN_BYTES,
    ) -> Answer:
        """Send a request once and return the answer. Raises Refused, NoContact."""
        answer = judged(await within(seconds, self._exchange(method, url, body, max_bytes)))
        self._routes.observe_clock(answer.server_now())
        return answer

    async def _exchange(self, method: str, url: str, body: bytes, max_bytes: int) -> Answer:
        """Send a request and read the answer, without a time-out."""
        if self._session is None:
            raise NoContact("the session is closed")
        headers = {"Content-Type": "application/json"} if body else {}
        if self._token.value is not None:
            headers["Authorization"] = f"Bearer {self._token.value}"
        try:
            way = self._routes.way(url)
            async with self._session.request(
                method,
                URL(url, encoded=True),
                data=body or None,
                headers=headers,
                allow_redirects=False,
                **way,
            ) as response:
                if encoding := unasked_encoding(response.headers):
                    raise NoContact(f"an answer in {encoding}, which was not asked for: a proxy?")
                data = await read_bounded(response, max_bytes)
                peer = response.peer if isinstance(response, PeerResponse) else None
                is_direct = way["proxy"] is None
                return Answer(response.status, data, response.headers, peer if is_direct else None)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reason = await self._routes.reason(error, url)
            raise NoContact(reason, was_cut=isinstance(error, _CUT)) from error


def judged(answer: Answer) -> Answer:
    """Return the answer if its status is final. Raises Refused or NoContact otherwise."""
    status = answer.status
    if status in (401, 403):
        said = _explained(answer)
        told = said.message[:_MAX_TOLD_CHARS]
        why = f": {told}" if told and told.isprintable() else ""
        raise Refused(
            f"the server answered {status}{_code_shown(answer)}{why}",
            status=status,
            detail=None if said.context is None else said.context.reason,
            code=code_of(answer),
        )
    if status in (408, 429) or status >= 500:
        raise NoContact(
            f"the server answered {status}{_code_shown(answer)}",
            status=status,
            retry_after=retry_after(answer.headers),
            code=code_of(answer),
        )
    if status == _PROXY_REFUSED:
        raise NoContact("the proxy wants other credentials (407): proxy.auth_file", status=status)
    if 300 <= status < 400:
        to = redirected(answer.headers)
        portal = ": a portal's log-in page?" if to else ""
        raise NoContact(f"a redirect ({status}){to}{portal}, not followed", status=status)
    if status < 300 and answer.is_page:
        raise NoContact(f"a web page ({status}) instead of the server: a portal or proxy?")
    return answer


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work` within `seconds`; an answer that has arrived late still counts.

    Raises NoAnswer when the time is over.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            done, _ = await asyncio.wait({task}, timeout=_LATE_SECONDS)
        if done:
            return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if not task.cancelled() and task.exception() is None:
        return task.result()  # it ended while it was cancelled
    raise NoAnswer(f"no answer within {seconds:g} s")


async def read_bounded(
    response: aiohttp.ClientResponse, max_bytes: int = _MAX_PLAIN_BYTES
) -> bytes:
    """Read the body of a response. Raises NoContact when it is larger than `max_bytes`."""
    max_bytes = min(max_bytes, _MAX_ANSWER_BYTES)
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > max_bytes:
            response.close()  # the rest would be read otherwise
            raise NoContact(f"the answer is larger than {max_bytes} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


class BackOff(msgspec.Struct, frozen=True):
    """The wait between two tries, with full jitter: agents must not come back all at once."""

    source: random.Random
    cap_seconds: float
    base_seconds: float = 0.5

    def seconds(self, failures: int, error: BaseException | None) -> float:
        """Return the wait after the n-th failure in a row, at least what the server asks for."""
        if isinstance(error, Refused):
            failures = (
                32  # an operator needs minutes to replace a token: begin with the longest wait
            )
        seconds = full_jitter(
            failures,
            base_seconds=self.base_seconds,
            cap_seconds=self.cap_seconds,
            source=self.source,
        )
        asked = error.retry_after if isinstance(error, NoContact) else None
        return seconds if asked is None else max(seconds, asked + self.source.uniform(0, 1))


def retrying(
    sleep: Callable[[float], Awaitable[None]], back_off: BackOff
) -> tenacity.AsyncRetrying:
    """Return a retrying that repeats a call after NoContact, without end."""

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        return back_off.seconds(state.attempt_number, error)

    return tenacity.AsyncRetrying(
        sleep=sleep,
        wait=wait,
        stop=tenacity.stop_never,
        retry=tenacity.retry_if_exception_type(NoContact),
        reraise=True,
    )


def _timeouts(settings: ServerSection) -> aiohttp.ClientTimeout:
    """Return time-outs for connecting only; `within` bounds the rest of a request."""
    return aiohttp.ClientTimeout(
        total=None,
        connect=settings.connect_timeout_seconds,
        sock_connect=settings.connect_timeout_seconds,
        sock_read=None,
    )


@lru_cache(maxsize=4)
def _posix_time(date: str) -> float | None:
    """Return an HTTP date as POSIX time; None if it is none. Answers of one second share theirs."""
    moment = http_date(date)
    return None if moment is None else moment.timestamp()


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of `Retry-After`, capped. A date is ignored: clocks may differ."""
    value = headers.get("Retry-After", "").strip()
    return (
        min(float(value), _MAX_RETRY_AFTER_SECONDS)
        if value.isascii() and value.isdecimal()
        else None
    )


def code_of(answer: Answer) -> str | None:
    """Return the code of a JSON error body; None for another body, which may be a proxy's."""
    try:
        code = msgspec.json.decode(answer.body, type=_Code).code
    except UNREADABLE:
        return None
    return code[:64] if code and code.isprintable() else None


def _code_shown(answer: Answer) -> str:
    """Return a space and the code of a JSON error body, or an empty string."""
    code = code_of(answer)
    return f" {code}" if code else ""


def redirected(headers: Mapping[str, str]) -> str:
    """Return ` to HOST` for a redirect: the host often names a portal's log-in page."""
    try:
        host = urlsplit(headers.get("Location", "")).hostname
    except ValueError:
        return ""
    return f" to {host[:100]}" if host and host.isprintable() else ""


def _explained(answer: Answer) -> _Explained:
    """Return what a JSON error body says; nothing of another body, which may be a proxy's."""
    try:
        return msgspec.json.decode(answer.body, type=_Explained)
    except UNREADABLE:
        return _Explained()


class _Context(msgspec.Struct):
    """The part of an error body's context that is read."""

    reason: str | None = None


class _Explained(msgspec.Struct):
    """The explanation in an error body."""

    message: str = ""
    context: _Context | None = None


class _Code(msgspec.Struct):
    """The code of an error body."""

    code: str = ""
