"""The checks of the way to the server, and of the server's answers to this agent."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from arc_agent.cli.doctor.finding import CHECK_SECONDS, Finding, bad, ok, untested
from arc_agent.config.sections import Config
from arc_agent.control.status import CLOCK_OFF_SECONDS
from arc_agent.net.access_token import AccessToken
from arc_agent.net.connection import Answer, NoContact, Refused, ServerConnection
from arc_agent.net.routes import Routes
from arc_agent.net.token import Bearer, ConfiguredToken, TokenError
from arc_agent.work.live_config import Source, bearer_of
from arc_protocol.codec import UNREADABLE
from arc_protocol.messages.leases import LeaseRequest, RenewRequest
from arc_runtime.network.system_errors import system_text
from arc_runtime.terminal.times import short_span

_SOON_DAYS: Final = 14
_DAY: Final = 86_400


async def examine(source: Source, config: Config) -> AsyncIterator[Finding]:
    """Run the checks of this module. Raises SettingsError."""
    routes = source.network(config)
    async for each in _way(config, routes):
        yield each
    token, finding = await _token(source, config, routes)
    yield finding
    if token is not None:
        async for each in _server(config, token, routes):
            yield each


# The way to the server


async def _way(config: Config, routes: Routes) -> AsyncIterator[Finding]:
    """Check DNS, proxy, connection, TLS and clock."""
    url = config.server.url or ""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        proxy = routes.proxies.of(url)
    except (ValueError, OSError) as error:
        yield bad("proxy", f"{error}: look at proxy.url, proxy.auth_file, HTTPS_PROXY")
        return
    if proxy is not None:
        yield await _resolved(proxy.url.host or "", proxy.url.port or 80)
        yield await _connected("proxy", proxy.url.host or "", proxy.url.port or 80)
    else:
        yield await _resolved(host, port)
        yield ok("proxy", "none is used for the server")
    async with _connection(config, ConfiguredToken(None, None), routes) as connection:
        try:
            base = connection.url().removesuffix("/v1/")
            answer = await connection.call("GET", f"{base}/readyz", timeout_seconds=CHECK_SECONDS)
        except NoContact as error:
            yield bad("server", f"{error.reason}: look at server.url, the network, the firewall")
            yield untested("tls", "no answer")
            yield untested("clock", "no answer")
            return
    yield ok("server", f"{parts.scheme}://{parts.netloc} answers ({answer.status})")
    yield await _tls(parts.scheme, host, port, routes, is_direct=proxy is None)
    yield _clock(routes)


async def _resolved(host: str, port: int) -> Finding:
    """Check that a name has addresses."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        return bad("dns", f"{host}: no answer in time: look at /etc/resolv.conf")
    except OSError as error:
        return bad("dns", f"{host}: {error.strerror}: look at the name and /etc/resolv.conf")
    addresses = dict.fromkeys(str(each[4][0]) for each in found)
    return ok("dns", f"{host} is {', '.join(list(addresses)[:4])}")


async def _connected(name: str, host: str, port: int) -> Finding:
    """Check that a host accepts connections."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return bad(name, f"{host}:{port} does not answer: look at proxy.url and the firewall")
    except OSError as error:
        return bad(name, f"{host}:{port}: {system_text(error)}: look at proxy.url")
    writer.close()
    return ok(name, f"{host}:{port} accepts connections")


async def _tls(scheme: str, host: str, port: int, routes: Routes, *, is_direct: bool) -> Finding:
    """Check the TLS version, and how long the certificate is valid."""
    if scheme != "https":
        return ok("tls", "none: server.url is http, so the server is not authenticated")
    if not is_direct:
        return ok("tls", "the server's certificate was verified, through the proxy")
    context = routes.way(f"https://{host}:{port}/")["ssl"]
    if not isinstance(context, ssl.SSLContext):
        context = ssl.create_default_context()
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except (OSError, TimeoutError) as error:
        return bad("tls", f"{error}: look at tls.ca_file and tls.client_cert")
    spoken: ssl.SSLObject = writer.get_extra_info("ssl_object")
    version, certificate = spoken.version(), spoken.getpeercert() or {}
    writer.close()
    ends = certificate.get("notAfter")
    seconds = ssl.cert_time_to_seconds(str(ends)) - time.time() if ends else None
    if seconds is not None and seconds < _SOON_DAYS * _DAY:
        return bad(
            "tls", f"{version}; the server's certificate ends in {short_span(max(0, seconds))}"
        )
    until = (
        "" if seconds is None else f", the server's certificate is good for {short_span(seconds)}"
    )
    return ok("tls", f"{version}{until}")


def _clock(routes: Routes) -> Finding:
    """Compare this host's clock with the server's."""
    offset = routes.clock_offset
    if offset is None:
        return untested("clock", "the server's answer has no date")
    if abs(offset) <= CLOCK_OFF_SECONDS:
        return ok("clock", f"within {max(1, round(abs(offset)))} s of the server's")
    way = "ahead of" if offset > 0 else "behind"
    return bad(
        "clock", f"{short_span(abs(offset))} {way} the server's: set it, or run an NTP client"
    )


@asynccontextmanager
async def _connection(
    config: Config, token: Bearer, routes: Routes
) -> AsyncGenerator[ServerConnection]:
    """Open a connection for the block."""
    connection = ServerConnection(config.server, token, routes)
    await connection.open()
    try:
        yield connection
    finally:
        await connection.close()


# The answers of the server


async def _token(
    source: Source, config: Config, routes: Routes
) -> tuple[ConfiguredToken | None, Finding]:
    """Return the configured token, or one fetched with the identity; None if there is none."""
    try:
        bearer = bearer_of(config, source.environ, routes)
    except (TokenError, OSError) as error:
        return None, bad("token", f"{error}: look at server.token_file, or run this as its user")
    except Exception as error:  # an unreadable identity raises errors of its own
        return None, bad("token", f"{error}: run this as the agent's user, or enrol again")
    if isinstance(bearer, ConfiguredToken):
        if bearer.value is None:
            return bearer, untested("token", "none: the server must accept every caller")
        where = bearer.file or "the configuration or environment"
        return bearer, ok("token", f"read from {where}")
    assert isinstance(bearer, AccessToken)
    async with _connection(config, ConfiguredToken(None, None), routes) as connection:
        try:
            answer = await bearer.fetch_another(connection)
        except Refused as error:
            return None, bad("token", f"{error.reason}: arc-agent enrol --replace")
        except NoContact as error:
            return None, untested("token", f"no access token: {error.reason}")
    who = bearer.identity.credential_id
    seconds = answer.expires_in_seconds
    return ConfiguredToken(answer.token, None), ok(
        "token", f"{who} gets access tokens, for {short_span(seconds)}"
    )


async def _server(config: Config, token: ConfiguredToken, routes: Routes) -> AsyncIterator[Finding]:
    """Check that the server accepts the token for this deployment, and requests for bodies."""
    async with _connection(config, token, routes) as connection:
        yield await _accepted(config, connection)
        fetched, is_refused = await _blob(connection, "GET")
        yield fetched
        if is_refused:
            yield (await _blob(connection, "PUT"))[0]
        elif fetched.state == "ok":  # a PUT might succeed, and leave a body
            yield untested(
                "blob PUT", "this token, or no token, might store a body; a command tries it"
            )


async def _accepted(config: Config, connection: ServerConnection) -> Finding:
    """Check that the server accepts the token for this deployment; lease no command."""
    renewal = RenewRequest(lease_ids=[], lease_seconds=config.lease.seconds)
    url = connection.url("commands", "leases", "renew")
    try:
        answer = await connection.call("POST", url, renewal, timeout_seconds=CHECK_SECONDS)
        if answer.status in (404, 405):
            return untested("access", "a server of the base protocol: only a lease would show it")
        if answer.status != 200:
            return bad("access", f"a renewal of no leases was answered {answer.status}")
        # A server with our extensions refuses zero leases of zero seconds, but judges first whether
        # the token may lease for the deployment.
        nothing = LeaseRequest(
            deployment_id=config.deployment_id,
            target=config.command_target,
            max_leases=0,
            lease_seconds=0,
        )
        url = connection.url("commands", "leases")
        await connection.call("POST", url, nothing, timeout_seconds=CHECK_SECONDS)
    except Refused as error:
        what = f"look at server.token_file and the deployment {config.deployment_id!r}"
        return bad("access", f"{error.reason}: {what}")
    except NoContact as error:
        return untested("access", error.reason)
    who = "every caller" if connection.is_anonymous else "the token"
    return ok("access", f"the server accepts {who} for the deployment {config.deployment_id!r}")


async def _blob(connection: ServerConnection, method: str) -> tuple[Finding, bool]:
    """Check that requests for bodies reach the server; return True if the server refused.

    The caller sends a PUT only to a server that has refused the GET of the same path.
    """
    name = f"blob {method}"
    elsewhere = "; only a command with a body can test another store"
    url = connection.url("blobs", "doctor")
    try:
        answer = await connection.call(
            method, url, b"x" if method == "PUT" else None, timeout_seconds=CHECK_SECONDS
        )
    except Refused as error:
        is_ours = error.status == 401 or error.code == "FORBIDDEN"
        if is_ours or "UNAUTHORIZED" in error.reason:
            return ok(name, f"reaches the server{elsewhere}"), True
        return bad(name, f"{error.reason}: does a proxy on the way allow {method}?"), False
    except NoContact as error:
        return bad(name, f"{error.reason}: does a proxy on the way allow {method}?"), False
    if _is_json(answer):
        return ok(name, f"reaches the server{elsewhere}"), False
    if answer.status == 404 or answer.status < 300:
        keeps_none = "the server keeps no bodies itself; a command with a body tests the store"
        return untested(name, keeps_none), False
    by_another = f"another host answered {answer.status}: does a proxy on the way allow {method}?"
    return bad(name, by_another), False


def _is_json(answer: Answer) -> bool:
    """Return True if the answer is the server's: its errors have a code."""
    with suppress(*UNREADABLE):
        return "code" in msgspec.json.decode(answer.body, type=dict[str, Any])
    return False
