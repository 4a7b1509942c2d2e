"""The routes from this host to the server and to the stores of bodies: proxy, TLS and sockets.

The main loop and the heartbeat's loop share one object. Only `reason` sends requests of its own: it
opens a second connection to read the certificate that was refused.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypedDict
from urllib.parse import urlsplit

import aiohttp
import msgspec
import structlog
from aiohttp.abc import AbstractResolver
from yarl import URL

from arc_agent.config.sections import Config, ProxySection, ServerSection, TlsSection
from arc_agent.net.proxies import Proxies
from arc_agent.net.tls import Tls
from arc_protocol.urls import same_origin
from arc_runtime.network.allowed_hosts import ServerAddresses
from arc_runtime.network.setting_names import SettingNames
from arc_runtime.network.shown_certificate import shown_certificate
from arc_runtime.network.system_errors import system_text
from arc_runtime.network.tls_errors import alert_of, explain, proxy_refusal

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_QUIET_SECONDS: Final = 15
"""The idle time after which the kernel probes a connection (TCP keep-alive)."""
_ASK_SECONDS: Final = 5
_ASKS: Final = 3
"""Unanswered probes until the connection is closed: half a minute after the other side is gone."""
_SETTINGS: Final = SettingNames(
    ca_file="tls.ca_file", client_cert="tls.client_cert", proxy_credentials="proxy.auth_file"
)
_KNOWN_SECONDS: Final = 300.0
"""The time for which the reason of a refused certificate is reused: tries follow quickly."""
_CLOCK_SECONDS: Final = 60.0
"""The difference between this host's clock and the server's that is logged."""


class Way(TypedDict):
    """The arguments of aiohttp's `request` for the route of one request."""

    proxy: URL | None
    ssl: ssl.SSLContext | bool


class Routes:
    """The routes out of this host. Safe from any thread."""

    def __init__(
        self,
        server: ServerSection,
        proxy: ProxySection | None = None,
        tls: TlsSection | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Raise ValueError or OSError for the proxy, TlsError for unusable certificates."""
        self._server_url = server.url or ""
        self._environ = environ
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._is_clock_off = False
        self._refused: dict[tuple[str, int], tuple[float, str]] = {}
        self.clock_offset: float | None = None
        """Seconds by which this host's clock was ahead of the server's when it last answered."""
        self.server_addresses: Final = ServerAddresses()
        """The addresses from which the server answered requests with the token."""
        self.proxies = Proxies(proxy or ProxySection(), environ)
        self._tls = Tls(_with_ca_of(server, tls or TlsSection()))
        self.proxies.of(self._server_url)

    def configure(self, config: Config) -> None:
        """Use other settings of `proxy` and `tls`; open connections stay.

        Raises ValueError, OSError, TlsError. The server changes only by a restart.
        """
        fresh = Routes(config.server, config.proxy, config.tls, environ=self._environ)
        self.proxies, self._tls = fresh.proxies, fresh._tls

    def way(self, url: str) -> Way:
        """Return the route of a request. Only the server is shown the client certificate.

        Raises ValueError and OSError when the proxy cannot be used.
        """
        proxy = self.proxies.of(url)
        return Way(
            proxy=None if proxy is None else proxy.url,
            ssl=self._tls.context(is_own=self.is_own(url)),
        )

    def is_own(self, url: str) -> bool:
        """Return True if a URL leads to the configured server."""
        return same_origin(url, self._server_url)

    def connector(
        self,
        *,
        resolver: AbstractResolver | None = None,
        keepalive_timeout: float = 15.0,
        use_dns_cache: bool = True,
    ) -> aiohttp.TCPConnector:
        """Return a pool of connections for the running loop. IPv6 and IPv4 race (RFC 8305)."""
        return aiohttp.TCPConnector(
            limit=0,
            resolver=resolver,
            keepalive_timeout=keepalive_timeout,
            use_dns_cache=use_dns_cache,
            socket_factory=watched_socket,
        )

    # The clock

    def observe_clock(self, server_now: float | None) -> None:
        """Compare this host's clock with the server's; log when they differ, and when they agree
        again."""
        if server_now is None:
            return
        offset = self._wall_clock() - server_now
        is_off = abs(offset) > _CLOCK_SECONDS
        with self._lock:
            self.clock_offset = offset
            is_news, self._is_clock_off = is_off != self._is_clock_off, is_off
        if not is_news:
            return
        if is_off:
            log.warning(
                "clock.differs",
                seconds=round(offset),
                hint="this host's clock is wrong, or the server's; leases do not depend on it, but"
                " whether certificates are valid does",
            )
        else:
            log.info("clock.agrees")

    # Reasons of failures

    async def reason(self, error: Exception, url: str) -> str:
        """Return why a request brought no answer, without path, query or credentials."""
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return await self._certificate(error.certificate_error, url)
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return f"the proxy {self._proxy_name(url)} {proxy_refusal(error.status, _SETTINGS)}"
        if isinstance(error, aiohttp.ClientProxyConnectionError):
            return f"cannot connect to the proxy {error.host}:{error.port}: {_of_system(error)}"
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return f"cannot look up {error.host}: {_of_system(error)}"
        if isinstance(error, aiohttp.ClientConnectorError):
            return f"cannot connect to {error.host}:{error.port}: {_of_system(error)}"
        return alert_of(error, _SETTINGS) or _plain(error)

    def _proxy_name(self, url: str) -> str:
        """Return host and port of the proxy for a URL."""
        with suppress(ValueError, OSError):
            proxy = self.proxies.of(url)
            if proxy is not None:
                return proxy.name
        return "(unknown)"

    async def _certificate(self, error: Exception, url: str) -> str:
        """Return which certificate was refused, and why."""
        code = error.verify_code if isinstance(error, ssl.SSLCertVerificationError) else -1
        said = getattr(error, "verify_message", "") or str(error)
        key = (_origin(url), code)
        with self._lock:
            known = self._refused.get(key)
        if known is not None and time.monotonic() - known[0] < _KNOWN_SECONDS:
            return known[1]
        proxy = self.proxies.of(url)
        der = await shown_certificate(url, None if proxy is None else proxy.url)
        text = explain(
            code,
            said,
            der,
            host=urlsplit(url).hostname or "",
            now=self._wall_clock(),
            clock_offset=self.clock_offset,
            settings=_SETTINGS,
        )
        with self._lock:
            self._refused = {key: (time.monotonic(), text)}
        return text


def watched_socket(address: Any) -> socket.socket:
    """Return a socket with keep-alive, so that a vanished peer is noticed."""
    family, kind, protocol = address[:3]
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", _QUIET_SECONDS),
            ("TCP_KEEPINTVL", _ASK_SECONDS),
            ("TCP_KEEPCNT", _ASKS),
        ):
            option = getattr(socket, name, None)  # not every system has them
            if option is not None:
                made.setsockopt(socket.IPPROTO_TCP, option, value)
    except OSError:
        made.close()
        raise
    return made


def _with_ca_of(server: ServerSection, tls: TlsSection) -> TlsSection:
    """Return the section with `server.ca_file`, the older name of `tls.ca_file`."""
    if server.ca_file is None or tls.ca_file is not None:
        return tls
    return msgspec.structs.replace(tls, ca_file=server.ca_file)


def _origin(url: str) -> str:
    """Return scheme, host and port of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _of_system(error: aiohttp.ClientConnectorError) -> str:
    """Return the system's reason of a failed connection."""
    return alert_of(error.os_error, _SETTINGS) or system_text(error.os_error)


def _plain(error: Exception) -> str:
    """Return an error's type and text; no text of errors that quote a URL."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"{type(error).__name__}: {error.status} {error.message}".strip()
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "no connection in time"  # aiohttp's text holds the URL, signature and all
    if isinstance(error, aiohttp.InvalidURL):
        return type(error).__name__
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
