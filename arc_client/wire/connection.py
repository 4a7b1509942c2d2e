"""The sender's connection: HTTP requests to one server, its token, and what answers mean."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from arc_client.errors import (
    ConfigurationError,
    ServerUnreachable,
    TokenRefused,
    UnexpectedAnswer,
    error_of,
)
from arc_protocol.codec import decode, encode
from arc_protocol.errors import ArcError, InvalidCommand
from arc_protocol.urls import redact
from arc_runtime.key_files import exposed
from arc_runtime.network.allowed_hosts import (
    GuardedResolver,
    HostPolicy,
    HostRefused,
    PeerResponse,
    ServerAddresses,
)
from arc_runtime.network.encodings import unasked_encoding
from arc_runtime.network.loopback import is_exposed, is_loopback
from arc_runtime.network.setting_names import SettingNames
from arc_runtime.network.shown_certificate import shown_certificate
from arc_runtime.network.system_errors import system_text
from arc_runtime.network.tls_errors import alert_of, explain, proxy_refusal

T = TypeVar("T")
log: Final = logging.getLogger("arc_client")
"""The standard log, which the programs of senders have."""

CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 30.0
"""The time that one request may take beyond the time that it asks the server to hold it."""
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""The largest answer of a server: a result of 32 MiB within a status is 43 MiB of base64."""
MAX_ERROR_BYTES: Final = 64 * 1024
"""The most bytes that are read of an answer of which only the status counts."""

_SETTINGS: Final = SettingNames(
    ca_file="--ca-file (ca_file of Client)",
    client_cert=None,
    proxy_credentials="HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT",
)
_EXPOSED: Final = (
    "{} is plain HTTP: other hosts can read the token and change commands; use https://,"
    " or set ARC_ALLOW_HTTP=1 (allow_http of Client)"
)
_VERSIONED: Final = "v1"
"""The path segment under which the routes are (docs/protocol.md, Requests and answers)."""


class SenderConnection:
    """A sender's connection holds a pool of HTTP connections to one server. Open it, and close it.

    The token goes to this server only: never to a presigned URL, never along a redirect. Presigned
    URLs lead to the server itself, to public hosts and to `allow_hosts`. Proxies are taken from the
    environment (`HTTPS_PROXY`, `NO_PROXY`) when it is opened; credentials come from the arguments
    alone.
    """

    def __init__(
        self,
        server_url: str,
        *,
        token: str | None = None,
        token_file: str | Path | None = None,
        ca_file: str | Path | None = None,
        allow_http: bool = False,
        allow_hosts: Sequence[str] = (),
    ) -> None:
        """Check the arguments, and connect nowhere yet. Raises ConfigurationError.

        `server_url` may end in `/v1`, and is plain HTTP off loopback only with `allow_http`. A
        token file is read again when its token is refused. `ca_file` holds the certificates (PEM)
        to trust in place of the system's.
        """
        if token is not None and token_file is not None:
            raise ConfigurationError("give a token or a token file, not both")
        self.base_url: Final = base_url(server_url)
        if is_exposed(self.base_url) and not allow_http:
            raise ConfigurationError(_EXPOSED.format(host_of(self.base_url)))
        self._prefix: Final = f"{self.base_url}/"
        self._token_file: Final = Path(token_file) if token_file is not None else None
        self._token = read_token(self._token_file) if self._token_file else token
        if self._token is not None:
            check_token(self._token, "the token")
        for line in exposed({"token_file": self._token_file}, None):
            log.warning(line)
        self._tls: Final = _trusting(Path(ca_file)) if ca_file is not None else True
        self._server_addresses: Final = ServerAddresses()
        self._hosts: Final = _policy(self.base_url, allow_hosts, self._server_addresses)
        self._session: aiohttp.ClientSession | None = None
        self._guarded: aiohttp.ClientSession | None = None
        """For presigned URLs; made for the first of them, which most commands do not have."""
        self._proxy: str | None = None

    async def open(self) -> None:
        """Make the connection pool."""
        # Reading the environment for every request would cost more than building the request.
        self._proxy = proxy_of(self.base_url)
        self._session = _session(aiohttp.TCPConnector(ssl=self._tls, limit=0))

    async def close(self) -> None:
        """Close the connection pool."""
        for session in (self._session, self._guarded):
            if session is not None:
                await session.close()
        self._session = self._guarded = None

    def url(self, *path: str, query: Mapping[str, str | int | None] | None = None) -> str:
        """Return the URL of a route. Segments and values are quoted; None is left out."""
        segments = "/".join(quote(segment, safe="") for segment in path)
        pairs = "&".join(
            f"{name}={quote(str(value), safe='')}"
            for name, value in (query or {}).items()
            if value is not None
        )
        return f"{self.base_url}/{segments}?{pairs}" if pairs else f"{self.base_url}/{segments}"

    async def call(
        self,
        method: str,
        url: str,
        kind: type[T],
        *,
        message: Any = None,
        limit_seconds: float = ANSWER_SECONDS,
    ) -> T:
        """Send one request, once, and return its answer as a message of `kind`.

        Raises ServerUnreachable when there is no whole answer within `limit_seconds`, the error
        that an error answer stands for (errors.error_of), and UnexpectedAnswer for anything else.
        """
        body = encode(message) if message is not None else None
        token = self._token
        try:
            data = await self._exchange(method, url, body, token, limit_seconds)
        except TokenRefused:
            fresh = await self._token_instead_of(token)
            if fresh is None:
                raise
            data = await self._exchange(method, url, body, fresh, limit_seconds)
        try:
            return decode(data, kind)
        except InvalidCommand as error:
            raise UnexpectedAnswer(
                f"{redact(url)} does not answer as an ARC server does: {error.message}"
            ) from error

    async def _exchange(
        self, method: str, url: str, body: bytes | None, token: str | None, limit_seconds: float
    ) -> bytes:
        """Send a request to the server and return the body of its 200. Raises its error else."""
        headers: dict[str, str] = {}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        timeout = aiohttp.ClientTimeout(total=limit_seconds, sock_connect=CONNECT_SECONDS)
        async with (
            translated(url),
            self._request(method, url, headers=headers, data=body, timeout=timeout) as response,
        ):
            is_success = response.status == 200
            data = await read_bounded(response, MAX_ANSWER_BYTES if is_success else MAX_ERROR_BYTES)
        if not is_success:
            raise answered(response, data)
        if response.content_type == "application/json" and self._proxy is None:
            self._server_addresses.add(getattr(response, "peer", None))
        return data

    async def _token_instead_of(self, refused: str | None) -> str | None:
        """Return a token that was not refused yet, of another request or of the file; else None."""
        if self._token_file is not None and self._token == refused:
            try:
                self._token = await asyncio.to_thread(read_token, self._token_file)
            except ConfigurationError:  # being replaced, or gone: the refusal is the better error
                return None
        return self._token if self._token != refused else None

    def _request(
        self, method: str, url: str, *, headers: Mapping[str, str], **more: Any
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send a request to the server, no redirect followed. Raises aiohttp's own errors."""
        return _sent(self._open_session(), self._proxy, method, url, headers, more)

    def transfer(
        self, method: str, url: str, *, headers: Mapping[str, str], **more: Any
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send a presigned request with its URL byte for byte, no token, no redirect followed.

        Raises HostRefused for a URL that leads where it must not, and aiohttp's own errors: use and
        read the answer within `translated`.
        """
        self._hosts.check(url)
        session = self._open_session()
        proxy = self._proxy if url.startswith(self._prefix) else proxy_of(url)
        if proxy is not None:
            self._hosts.check_unresolved(url)
            return _sent(session, proxy, method, url, headers, more)
        if self._guarded is None:
            # No address is remembered: each connection is judged by what its name means then.
            resolver = GuardedResolver(self._hosts)
            self._guarded = _session(
                aiohttp.TCPConnector(ssl=self._tls, limit=0, resolver=resolver, use_dns_cache=False)
            )
        return _sent(self._guarded, None, method, url, headers, more)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the client is not open: use it in a `with` statement")
        return self._session


def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    """Return a session without memory: no cookies, no decompression."""
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        response_class=PeerResponse,
    )


def _sent(
    session: aiohttp.ClientSession,
    proxy: str | None,
    method: str,
    url: str,
    headers: Mapping[str, str],
    more: Mapping[str, Any],
) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
    """Return a request by a session, with its URL byte for byte."""
    return session.request(
        method,
        URL(url, encoded=True),
        headers={"User-Agent": "arc", "Accept-Encoding": "identity", **headers},
        skip_auto_headers=("Content-Type",),
        allow_redirects=False,
        proxy=proxy,
        **more,
    )


def _policy(base_url: str, allow_hosts: Sequence[str], addresses: ServerAddresses) -> HostPolicy:
    """Return the rule about the hosts of presigned URLs. Raises ConfigurationError."""
    try:
        return HostPolicy(
            base_url, allow_hosts, has_answered=addresses.__contains__, setting="ARC_ALLOW_HOSTS"
        )
    except ValueError as error:
        raise ConfigurationError(f"ARC_ALLOW_HOSTS (allow_hosts of Client): {error}") from error


async def read_bounded(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Return the body of an answer; of one that is no success, as much as is worth reading.

    Raises UnexpectedAnswer when a success is larger than `max_bytes`, or compressed unasked.
    """
    is_success = 200 <= response.status < 300
    encoding = unasked_encoding(response.headers)
    if encoding is not None:
        response.close()
        if is_success:
            where = host_of(str(response.url))
            raise UnexpectedAnswer(f"{where} answers in {encoding}, which was not asked for")
        return b""
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > max_bytes:
            response.close()
            if is_success:
                where = host_of(str(response.url))
                raise UnexpectedAnswer(f"{where} answers with more than {max_bytes:,} bytes")
            break
    return bytes(data[:max_bytes])


@asynccontextmanager
async def translated(url: str) -> AsyncGenerator[None]:
    """Raise ServerUnreachable in place of an error on the way to or from a host.

    Raises ConfigurationError for a certificate that is refused, with what it says, and
    UnexpectedAnswer for a URL that leads where it must not.
    """
    try:
        yield
    except HostRefused as error:
        reason = f"the server hands out a URL that is not used: {error}"
        raise UnexpectedAnswer(reason, is_final=True) from error
    except aiohttp.ClientConnectorCertificateError as error:
        raise ConfigurationError(await _refused_certificate(error, url)) from error
    except TimeoutError as error:
        raise ServerUnreachable(f"{host_of(url)} gave no answer in time") from error
    except (aiohttp.ClientError, OSError) as error:
        is_between = (
            isinstance(error, aiohttp.ClientHttpProxyError | aiohttp.ClientProxyConnectionError)
            or alert_of(error, _SETTINGS) is not None
        )
        raise ServerUnreachable(
            f"cannot reach {host_of(url)}: {_reason(error, url)}", is_between=is_between
        ) from error


def answered(response: aiohttp.ClientResponse, data: bytes) -> ArcError:
    """Return the error that an answer other than a success stands for."""
    where = response.headers.get("Location")
    if 300 <= response.status < 400 and where is not None:
        return UnexpectedAnswer(
            f"{host_of(str(response.url))} redirects to {redact(where)}: use that as server URL",
            status=response.status,
        )
    return error_of(
        response.status,
        data,
        url=str(response.url),
        retry_after=retry_after(response.headers.get("Retry-After"), datetime.now(UTC)),
    )


def base_url(server_url: str) -> str:
    """Return the URL that routes are appended to, without a slash at its end.

    Raises ConfigurationError for anything but `http(s)://host[:port][/prefix][/v1]`.
    """
    shown = redact(server_url)
    try:
        parts = urlsplit(server_url.strip())
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise ConfigurationError(f"the server URL cannot be parsed: {error}") from error
    if not is_usable:
        raise ConfigurationError(f"not a server URL: {shown!r} (expected https://host:port)")
    if "@" in parts.netloc:
        raise ConfigurationError("the server URL carries a password; use a token instead")
    if parts.query or parts.fragment:
        raise ConfigurationError(f"the server URL has a query or a fragment: {shown!r}")
    segments = [segment for segment in parts.path.split("/") if segment]
    if segments[-1:] != [_VERSIONED]:
        segments.append(_VERSIONED)
    return f"{parts.scheme}://{parts.netloc}/{'/'.join(segments)}"


def read_token(path: Path) -> str:
    """Return the token in a file, without the white space around it. Raises ConfigurationError."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"the token file {path} does not hold a token") from error
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the token file {path}: {error.strerror or error}"
        ) from error
    check_token(token, f"the token file {path}")
    return token


def check_token(token: str, where: str) -> None:
    """Raise ConfigurationError if a token cannot be sent in a header; the token is not shown."""
    if not token:
        raise ConfigurationError(f"{where} is empty")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigurationError(f"{where} does not hold a token, alone on one line")


def retry_after(value: str | None, now: datetime) -> float | None:
    """Return `Retry-After` in seconds, from either form of RFC 9110 10.2.3; None if unreadable."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
        return max(0.0, (moment - now).total_seconds())
    except (TypeError, ValueError):  # no date, or one without an offset
        return None


def proxy_of(url: str) -> str | None:
    """Return the proxy that the environment names for a URL; None for this machine itself."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def host_of(url: str) -> str:
    """Return scheme, host and port of a URL, which is what a message names."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _trusting(ca_file: Path) -> ssl.SSLContext:
    """Return TLS that trusts only the certificates of a file. Raises ConfigurationError."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        what = f"cannot use the certificates in {ca_file}: it holds no readable PEM"
        raise ConfigurationError(what) from error
    except OSError as error:
        what = f"cannot use the certificates in {ca_file}: {error.strerror or error}"
        raise ConfigurationError(what) from error


async def _refused_certificate(error: aiohttp.ClientConnectorCertificateError, url: str) -> str:
    """Return which certificate was refused, why, and what to do about it."""
    refused = error.certificate_error
    return explain(
        refused.verify_code if isinstance(refused, ssl.SSLCertVerificationError) else -1,
        getattr(refused, "verify_message", "") or str(refused),
        await shown_certificate(url, proxy_of(url)),
        host=urlsplit(url).hostname or "",
        now=time.time(),
        clock_offset=None,
        settings=_SETTINGS,
    )


def _reason(error: Exception, url: str) -> str:
    """Return why a connection failed, in as few words as the error allows."""
    match error:
        case aiohttp.ClientHttpProxyError():
            proxy = host_of(proxy_of(url) or "")
            return f"the proxy {proxy} {proxy_refusal(error.status, _SETTINGS)}"
        case aiohttp.ClientProxyConnectionError():
            why = _of_system(error.os_error)
            return f"cannot connect to the proxy {error.host}:{error.port}: {why}"
        case aiohttp.ClientConnectorDNSError():
            is_unproven = not isinstance(error.os_error, socket.gaierror)
            return str(error.os_error.strerror) if is_unproven else "there is no such host"
        case aiohttp.ClientConnectorError():
            return _of_system(error.os_error)
        case aiohttp.ServerDisconnectedError():
            return "it closed the connection"
        case aiohttp.ClientPayloadError():
            return "its answer broke off"
        case _ if (told := alert_of(error, _SETTINGS)) is not None:
            return told
        case OSError():
            return _of_system(error)
        case _:
            return str(error) or type(error).__name__


def _of_system(error: OSError) -> str:
    """Return the system's own text for an error, or the meaning of an alert of TLS."""
    return alert_of(error, _SETTINGS) or system_text(error)
