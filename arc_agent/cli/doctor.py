"""`arc-agent doctor`: everything that an agent depends on, tried one by one, with what to do.

It leases nothing and changes nothing: it asks `/readyz`, for a renewal of no leases, for no leases
(which our server judges and refuses), and at its store's routes without a signature.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from arc_agent.cli.status import size, span
from arc_agent.config.places import audit_directory, data_directory
from arc_agent.config.sections import Config
from arc_agent.control.status import CLOCK_OFF_SECONDS
from arc_agent.handlers.loading import ImportFailed, load_handlers
from arc_agent.handlers.registry import HandlerError
from arc_agent.host.control_socket import AgentNotThere, ControlDenied, ControlRefused, ask
from arc_agent.net.connection import Answer, NoContact, Refused, ServerConnection
from arc_agent.net.routes import Routes
from arc_agent.net.token import Bearer, ConfiguredToken, TokenError
from arc_agent.work.live_config import Source, bearer_of, policy_of
from arc_protocol.messages.leases import LeaseRequest, RenewRequest
from arc_runtime.config.settings import SettingsError
from arc_runtime.logs.redaction import mask_known

_SECONDS: Final = 10.0
"""What one look may take."""
_SLOW_FSYNC_SECONDS: Final = 1.0
_SOON_DAYS: Final = 14
_DAY: Final = 86_400


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one look has shown."""

    name: str
    state: Literal["ok", "bad", "untested"]
    text: str


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Which agent is looked at."""

    source: Source
    control: Path
    """Its control socket."""
    unit: str


async def examine(place: Place) -> AsyncIterator[Finding]:
    """Look at everything; findings as they come. Raises SettingsError for no configuration."""
    config = place.source.read()
    yield _ok("config", str(place.source.file or "environment and command line"))
    status = await asyncio.to_thread(_status, place)
    yield _running(status)
    network = place.source.network(config)
    async for each in _way(config, network):
        yield each
    token, finding = await _token(place, config, network)
    yield finding
    if token is not None:
        async for each in _server(config, token, network):
            yield each
    yield _long_poll(status)
    for look in (_disk, _audit):
        yield await asyncio.to_thread(look, config, place.source.environ)
    yield await asyncio.to_thread(_handlers, config)
    yield _policy(config)
    yield await _unit(place.unit)


def line(finding: Finding) -> str:
    """A finding for people."""
    mark = {"ok": "ok", "bad": "BAD", "untested": "-"}[finding.state]
    text = "".join(char if char.isprintable() else " " for char in mask_known(finding.text))
    return f"{mark:<4} {finding.name:<10} {text}"


# The agent itself


def _status(place: Place) -> dict[str, Any] | str:
    """What the running agent says; a text when there is none to ask."""
    try:
        return ask(place.control, {"do": "status"}, timeout_seconds=_SECONDS)
    except AgentNotThere:
        return "it does not run"
    except (ControlDenied, ControlRefused) as error:
        return str(error)


def _running(status: dict[str, Any] | str) -> Finding:
    """Whether it runs, and what it says of itself."""
    if isinstance(status, str):
        return _untested("agent", f"{status}; this looks from outside")
    if status["is_healthy"]:
        return _ok("agent", f"runs, pid {status['pid']}, healthy")
    reasons = "; ".join(f"{each['part']}: {each['reason']}" for each in status["degraded"])
    return _bad("agent", f"runs, pid {status['pid']}, but {reasons}")


def _long_poll(status: dict[str, Any] | str) -> Finding:
    """Only a request that may lease a command is held: none of ours is sent."""
    if isinstance(status, str):
        return _untested(
            "long poll",
            "only a request that may take a command is held by the server; with the agent stopped"
            " `arc-agent run-once --wait 30s` tries it for real",
        )
    held = status["contact"]["held_seconds"]
    if held is None:
        return _untested("long poll", "the running agent has had no poll held yet; ask again later")
    if held < 1.0:
        return _bad(
            "long poll",
            f"the server answers after {held:g} s: it does not hold requests; it is asked in"
            " intervals (poll.interval_seconds)",
        )
    return _ok("long poll", f"the running agent's last was held {held:g} s")


# The way to the server


async def _way(config: Config, network: Routes) -> AsyncIterator[Finding]:
    """DNS, proxy, connection, TLS, clock."""
    url = config.server.url or ""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        proxy = network.proxies.of(url)
    except (ValueError, OSError) as error:
        yield _bad("proxy", f"{error}: look at proxy.url, proxy.auth_file, HTTPS_PROXY")
        return
    if proxy is not None:
        yield await _resolved(proxy.url.host or "", proxy.url.port or 80)
        yield await _connected("proxy", proxy.url.host or "", proxy.url.port or 80)
    else:
        yield await _resolved(host, port)
        yield _ok("proxy", "none is used for the server")
    async with _connection(config, ConfiguredToken(None, None), network) as connection:
        try:
            base = connection.url().removesuffix("/v1/")
            answer = await connection.call("GET", f"{base}/readyz", timeout_seconds=_SECONDS)
        except NoContact as error:
            yield _bad("server", f"{error.reason}: look at server.url, the network, the firewall")
            yield _untested("tls", "no answer")
            yield _untested("clock", "no answer")
            return
    yield _ok("server", f"{parts.scheme}://{parts.netloc} answers ({answer.status})")
    yield await _tls(parts.scheme, host, port, network, is_direct=proxy is None)
    yield _clock(network)


async def _resolved(host: str, port: int) -> Finding:
    """Whether a name has addresses."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_SECONDS):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        return _bad("dns", f"{host}: no answer in time: look at /etc/resolv.conf")
    except OSError as error:
        return _bad("dns", f"{host}: {error.strerror}: look at the name and /etc/resolv.conf")
    addresses = dict.fromkeys(str(each[4][0]) for each in found)
    return _ok("dns", f"{host} is {', '.join(list(addresses)[:4])}")


async def _connected(name: str, host: str, port: int) -> Finding:
    """Whether somebody listens there."""
    try:
        async with asyncio.timeout(_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return _bad(name, f"{host}:{port} does not answer: look at proxy.url and the firewall")
    except OSError as error:
        return _bad(name, f"{host}:{port}: {error.strerror or error}: look at proxy.url")
    writer.close()
    return _ok(name, f"{host}:{port} takes connections")


async def _tls(scheme: str, host: str, port: int, network: Routes, *, is_direct: bool) -> Finding:
    """What the connection is protected by, and for how long."""
    if scheme != "https":
        return _ok("tls", "none: server.url is http, so nobody checks who the server is")
    if not is_direct:
        return _ok("tls", "the server's certificate was verified, through the proxy")
    context = network.way(f"https://{host}:{port}/")["ssl"]
    if not isinstance(context, ssl.SSLContext):
        context = ssl.create_default_context()
    try:
        async with asyncio.timeout(_SECONDS):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except (OSError, TimeoutError) as error:
        return _bad("tls", f"{error}: look at tls.ca_file and tls.client_cert")
    spoken: ssl.SSLObject = writer.get_extra_info("ssl_object")
    version, certificate = spoken.version(), spoken.getpeercert() or {}
    writer.close()
    ends = certificate.get("notAfter")
    left = ssl.cert_time_to_seconds(str(ends)) - time.time() if ends else None
    if left is not None and left < _SOON_DAYS * _DAY:
        return _bad("tls", f"{version}; the server's certificate ends in {span(max(0, left))}")
    until = "" if left is None else f", the server's certificate is good for {span(left)}"
    return _ok("tls", f"{version}{until}")


def _clock(network: Routes) -> Finding:
    """By how much this host's clock differs from the server's."""
    offset = network.clock_offset
    if offset is None:
        return _untested("clock", "the server does not tell its time")
    if abs(offset) <= CLOCK_OFF_SECONDS:
        return _ok("clock", f"within {max(1, round(abs(offset)))} s of the server's")
    way = "ahead of" if offset > 0 else "behind"
    return _bad("clock", f"{span(abs(offset))} {way} the server's: set it, or run an NTP client")


@asynccontextmanager
async def _connection(
    config: Config, token: Bearer, network: Routes
) -> AsyncGenerator[ServerConnection]:
    """A session of its own."""
    connection = ServerConnection(config.server, token, network)
    await connection.open()
    try:
        yield connection
    finally:
        await connection.close()


# What the server says


async def _token(
    place: Place, config: Config, network: Routes
) -> tuple[ConfiguredToken | None, Finding]:
    """What to show the server: a token, or one fetched with the identity. None: none to be had."""
    try:
        bearer = bearer_of(config, place.source.environ, network)
    except (TokenError, OSError) as error:
        return None, _bad("token", f"{error}: look at server.token_file, or run this as its user")
    except Exception as error:  # an identity that cannot be read has errors of its own
        return None, _bad("token", f"{error}: run this as the agent's user, or enrol again")
    if isinstance(bearer, ConfiguredToken):
        if bearer.value is None:
            return bearer, _untested("token", "none is configured: the server has to take anybody")
        where = bearer.file or "the configuration or environment"
        return bearer, _ok("token", f"read from {where}")
    from arc_agent.net.access_token import AccessToken

    assert isinstance(bearer, AccessToken)
    async with _connection(config, ConfiguredToken(None, None), network) as connection:
        try:
            answer = await bearer.fetch_another(connection)
        except Refused as error:
            return None, _bad("token", f"{error.reason}: arc-agent enrol --replace")
        except NoContact as error:
            return None, _untested("token", f"no access token to be had: {error.reason}")
    who = bearer.identity.credential_id
    seconds = answer.expires_in_seconds
    return ConfiguredToken(answer.token, None), _ok(
        "token", f"{who} gets access tokens, for {span(seconds)}"
    )


async def _server(
    config: Config, token: ConfiguredToken, network: Routes
) -> AsyncIterator[Finding]:
    """Whether the server takes the token, for this deployment, and lets bodies through."""
    async with _connection(config, token, network) as connection:
        yield await _accepted(config, connection)
        fetched, is_refused = await _blob(connection, "GET")
        yield fetched
        if is_refused:
            yield (await _blob(connection, "PUT"))[0]
        elif fetched.state == "ok":  # who may read might write too: nothing is to be left there
            yield _untested(
                "blob PUT", "this token, or anybody, might store it; a command tries it"
            )


async def _accepted(config: Config, connection: ServerConnection) -> Finding:
    """Whether the token is good for this deployment; without any chance of a lease."""
    renewal = RenewRequest(lease_ids=[], lease_seconds=config.lease.seconds)
    url = connection.url("commands", "leases", "renew")
    try:
        answer = await connection.call("POST", url, renewal, timeout_seconds=_SECONDS)
        if answer.status in (404, 405):
            return _untested("access", "a server of the base protocol: only a lease would tell")
        if answer.status != 200:
            return _bad("access", f"a renewal of no leases was answered {answer.status}")
        # Zero leases of zero seconds: refused by a server with our additions, once it has judged
        # whether this token may lease for the deployment at all.
        nothing = LeaseRequest(
            deployment_id=config.deployment_id,
            target=config.command_target,
            max_leases=0,
            lease_seconds=0,
        )
        url = connection.url("commands", "leases")
        await connection.call("POST", url, nothing, timeout_seconds=_SECONDS)
    except Refused as error:
        return _bad(
            "access",
            f"{error.reason}: the token is wrong, revoked, or not for {config.deployment_id!r}",
        )
    except NoContact as error:
        return _untested("access", error.reason)
    who = "anybody" if connection.is_anonymous else "the token"
    return _ok("access", f"the server takes {who} for the deployment {config.deployment_id!r}")


async def _blob(connection: ServerConnection, method: str) -> tuple[Finding, bool]:
    """Whether requests for bodies reach the server, and whether it was the server that refused.

    A PUT is sent only to a server that has refused the GET of the same path.
    """
    name = f"blob {method}"
    elsewhere = "; a store elsewhere can be tried by a command with a body only"
    url = connection.url("blobs", "doctor")
    try:
        answer = await connection.call(
            method, url, b"x" if method == "PUT" else None, timeout_seconds=_SECONDS
        )
    except Refused as error:
        is_ours = error.status == 401 or "FORBIDDEN" in error.reason
        if is_ours or "UNAUTHORIZED" in error.reason:
            return _ok(name, f"reaches the server{elsewhere}"), True
        return _bad(name, f"{error.reason}: does a proxy on the way allow {method}?"), False
    except NoContact as error:
        return _bad(name, f"{error.reason}: does a proxy on the way allow {method}?"), False
    if _is_json(answer):
        return _ok(name, f"reaches the server{elsewhere}"), False
    if answer.status == 404 or answer.status < 300:
        keeps_none = "the server keeps no bodies itself; a command with one tries it"
        return _untested(name, keeps_none), False
    by_another = f"answered {answer.status} by another: does a proxy allow {method}?"
    return _bad(name, by_another), False


def _is_json(answer: Answer) -> bool:
    """Whether it is a word of the server's: every error of its has a code."""
    with suppress(msgspec.MsgspecError, UnicodeDecodeError):
        return "code" in msgspec.json.decode(answer.body, type=dict[str, Any])
    return False


# This host


def _disk(config: Config, environ: Mapping[str, str]) -> Finding:
    """Whether finished work can be kept: room, files, and writes that last."""
    directory = data_directory(config, environ)
    if not directory.exists():
        return _untested("disk", f"{directory} is not there yet; the agent makes it")
    try:
        found = os.statvfs(directory)
        free = found.f_bavail * found.f_frsize
        if free < config.spool.min_free_bytes:
            return _bad("disk", f"{directory}: {size(free)} free: below spool.min_free_bytes")
        if found.f_files and found.f_favail < config.spool.min_free_inodes:
            return _bad("disk", f"{directory}: {found.f_favail} files: spool.min_free_inodes")
        seconds = _write(directory)
    except OSError as error:
        return _bad("disk", f"{directory}: {error.strerror}: is it the agent's user's own?")
    if seconds > _SLOW_FSYNC_SECONDS:
        return _bad("disk", f"{directory}: a durable write takes {seconds:.1f} s: a slow disk")
    return _ok("disk", f"{directory}: {size(free)} free, durable write {seconds * 1000:.0f} ms")


def _write(directory: Path) -> float:
    """The seconds that a small durable write takes. Raises OSError."""
    file = directory / f".doctor-{os.getpid()}"
    began = time.monotonic()
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, bytes(4096))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        file.unlink()
    return time.monotonic() - began


def _audit(config: Config, environ: Mapping[str, str]) -> Finding:
    """Whether the audit log can be written: no line, no command."""
    if not config.audit.enabled:
        return _ok("audit", "switched off (audit.enabled)")
    directory = audit_directory(config, environ)
    if not directory.exists():
        return _untested("audit", f"{directory} is not there yet; the agent makes it")
    if not os.access(directory, os.W_OK | os.X_OK):
        return _bad("audit", f"{directory} cannot be written: is it the agent's user's own?")
    return _ok("audit", f"{directory}; `arc-agent audit verify` checks what is in it")


def _handlers(config: Config) -> Finding:
    """Whether all handlers can be loaded."""
    try:
        registry = load_handlers(config.handlers)
    except ImportFailed as error:
        last = error.report.strip().rpartition("\n")[2]
        return _bad("handlers", f"{error}: {last}")
    except HandlerError as error:
        return _bad("handlers", str(error))
    return _ok("handlers", f"{len(registry)} can be loaded")


def _policy(config: Config) -> Finding:
    """Whether the rules can be read."""
    try:
        policy = policy_of(config)
    except (SettingsError, OSError) as error:
        return _bad("policy", str(error))
    if policy is None:
        return _ok("policy", "none: everything that has a handler may run (policy.file)")
    return _ok("policy", f"{policy.source}, {len(policy.rules)} rules")


async def _unit(unit: str) -> Finding:
    """Whether systemd has the unit, runs it, and has it as this version brings it."""
    names = ("LoadState", "ActiveState", "FragmentPath", "NeedDaemonReload")
    try:
        process = await asyncio.create_subprocess_exec(
            "systemctl",
            *("show", unit, f"--property={','.join(names)}"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return _untested("unit", "there is no systemd here")
    try:
        async with asyncio.timeout(_SECONDS):
            printed, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return _untested("unit", "systemctl does not answer")
    if process.returncode != 0:
        return _untested("unit", "systemd does not run here")
    found = dict(each.split("=", 1) for each in printed.decode().splitlines() if "=" in each)
    return judge_unit(unit, found)


def judge_unit(unit: str, found: Mapping[str, str]) -> Finding:
    """What systemd's properties of the unit mean."""
    if found.get("LoadState") != "loaded":
        return _untested("unit", f"{unit} is not installed: arc-agent install")
    if found.get("NeedDaemonReload") == "yes":
        return _bad("unit", f"{unit} was changed on disk: systemctl daemon-reload")
    if found.get("ActiveState") != "active":
        state = found.get("ActiveState")
        return _bad("unit", f"{unit} is {state}: systemctl start, or journalctl -u {unit}")
    file = Path(found.get("FragmentPath", ""))
    packaged = (
        Path(__file__).parent.parent / "units" / ("arc-agent@.service" if "@" in unit else unit)
    )
    with suppress(OSError):
        if file.read_bytes() != packaged.read_bytes():
            return _bad("unit", f"{unit} runs, but {file} is not this version's: install again")
    return _ok("unit", f"{unit} runs, {file} is this version's")


# Findings


def _ok(name: str, text: str) -> Finding:
    """It is as it should be."""
    return Finding(name=name, state="ok", text=text)


def _bad(name: str, text: str) -> Finding:
    """It is not; the text says what to do."""
    return Finding(name=name, state="bad", text=text)


def _untested(name: str, text: str) -> Finding:
    """It could not be tried; the text says why."""
    return Finding(name=name, state="untested", text=text)
