"""The composition root builds a running server from a configuration."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import structlog

from arc_runtime import systemd
from arc_runtime.control_socket import OWNER_MODE, Control, ControlError
from arc_runtime.directories import make_directory
from arc_server.auth.access import AccessTokens
from arc_server.auth.bootstrap import BootstrapTokens
from arc_server.auth.callers import Authenticator
from arc_server.auth.enrolment import Enrolment
from arc_server.auth.oidc import OidcTokens
from arc_server.auth.revocations import Revocations, Revoked
from arc_server.background import in_background
from arc_server.blobs.local import LocalBlobStore
from arc_server.clock import SystemClock
from arc_server.config.oidc_section import oidc_limits, oidc_providers
from arc_server.config.parts import (
    command_limits,
    deployments,
    disk_marks,
    enrolment_limits,
    push_limits,
    retention_limits,
    server_tls,
    sweep_limits,
)
from arc_server.config.reading import (
    check_exposure,
    listen_address,
    metrics_address,
    push_hosts,
)
from arc_server.config.sections import ServerConfig
from arc_server.control.store_calls import SOCKET, answer_keeping_calls, answer_store_calls
from arc_server.disk_room import DiskLevel, DiskRoom, Measured, make_room_to_open, measure
from arc_server.http.application import Application
from arc_server.http.base_urls import BaseUrls, with_prefix
from arc_server.http.browser_guard import BrowserGuard
from arc_server.http.listening import Listener, bind
from arc_server.http.routes import (
    agents,
    blobs,
    bootstrap,
    commands,
    enrolment,
    events,
    health,
    leases,
    search,
)
from arc_server.http.routing import Route
from arc_server.http.server import HttpServer
from arc_server.http.tls import ServerTls
from arc_server.metrics.endpoint import MetricsEndpoint
from arc_server.metrics.gauges import Sources
from arc_server.metrics.meter import CountingMeter
from arc_server.ports.clock import Clock
from arc_server.ports.keeping import Keeping
from arc_server.ports.meter import NO_METER, ServerMeter
from arc_server.ports.records import Epoch
from arc_server.ports.store import Store
from arc_server.push.http import HttpDispatcher
from arc_server.push.outbox import Outbox
from arc_server.push.push_tokens import PushTokens
from arc_server.server_keys import KeysUnusable, Signer
from arc_server.service.retention import Retention
from arc_server.service.services import ServerServices, build_services
from arc_server.service.sweeper import Sweeper
from arc_server.store.engine.refusals import StoreLocked, StoreRefused
from arc_server.store.sqlite_store import SqliteStore

log = structlog.get_logger(__name__)

DATABASE: Final = "arc.db"
KEYS: Final = "keys"
BLOBS: Final = "blobs"
"""Names in the data directory."""
PUSH_STOP_SECONDS: Final = 1.0
"""The time that sends in progress may take when the server stops. Unfinished ones go again after
the restart."""
LOCK_PATIENCE_SECONDS: Final = 2.0
"""The time that a server waits for a command of the operator that is using the database."""
LOCK_RETRY_SECONDS: Final = 0.05


class CannotStart(Exception):
    """The server cannot start; nothing was changed. The message is a line for the terminal."""


class DataDirInUse(CannotStart):
    """Another process has the database open."""


class StoreFailed(Exception):
    """The database cannot be relied on any more until it is opened again."""


class ServerParts(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a server that its routes need."""

    store: Store
    blobs: LocalBlobStore
    signer: Signer
    clock: Clock
    services: ServerServices
    room: DiskRoom

    @property
    def readiness(self) -> health.Readiness:
        """Return what judges whether the server is ready."""
        return health.Readiness(self.store, self.services.announcements, self.room)


def all_routes(parts: ServerParts, config: ServerConfig) -> tuple[Route, ...]:
    """Return every route of the server."""
    return (
        *commands.routes(parts.services.commands),
        *search.routes(parts.services.search, parts.services.attempts),
        *leases.routes(parts.services.leases, parts.signer, parts.clock),
        *events.routes(parts.services.events),
        *agents.routes(
            parts.services.agents,
            parts.clock,
            registration_bytes_per_second=config.http.registration_bytes_per_second,
        ),
        *enrolment.routes(
            Enrolment(
                parts.store,
                AccessTokens(parts.signer, parts.clock),
                parts.clock,
                enrolment_limits(config),
            ),
            parts.clock,
            max_per_second=config.enrolment.max_per_second,
        ),
        *bootstrap.routes(
            parts.store,
            BootstrapTokens(parts.signer, parts.clock),
            parts.clock,
            auto_register=config.targets.auto_register,
        ),
        *blobs.routes(
            parts.blobs,
            parts.services.uploads,
            parts.signer,
            parts.clock,
            config.commands.max_blob_bytes,
        ),
        *health.routes(parts.readiness),
    )


class RunningServer:
    """A server that serves, until it is stopped or `failure` is done."""

    def __init__(
        self, url: str, parts: ServerParts, http: HttpServer, tls: ServerTls | None
    ) -> None:
        self.url = url
        """Scheme, host and port that the server listens on, or `unix:` and a path."""
        self.parts = parts
        self.http = http
        self.tls = tls
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done, with an exception, when the server cannot go on."""
        self.steps: Callable[[], int] = lambda: 0
        """Returns the steps of the sweeper; they stand still while the database takes no writes."""

    def reload(self) -> None:
        """Read the signing keys and the certificate again."""
        if self.tls is not None:
            self.tls.reload()
        self.parts.signer.reload()

    def fail(self, error: BaseException) -> None:
        """Record that the server cannot go on."""
        if not self.failure.done():
            self.failure.set_exception(error)


@asynccontextmanager
async def serving(
    config: ServerConfig,
    clock: Clock | None = None,
    gauge: Callable[[Path], Measured] = measure,
) -> AsyncGenerator[RunningServer]:
    """Run a server for as long as the context lasts; drain and close it at the end.

    Raises CannotStart before anything was changed, SettingsError for a bad token file.
    """
    clock = clock or SystemClock()
    known = deployments(config)
    async with AsyncExitStack() as stack:
        tls = server_tls(config)
        listeners = open_listeners(config, stack)
        metrics_listener = _open_metrics_listener(config, stack)
        meter: ServerMeter = NO_METER if metrics_listener is None else CountingMeter()
        url = listeners[0].url(is_tls=tls is not None)
        store = await open_store(config.data_dir, patience_seconds=LOCK_PATIENCE_SECONDS)
        stack.push_async_callback(store.close)
        changes: list[Callable[[str], None]] = []
        control = await _open_control(
            config.data_dir, store, lambda method: [each(method) for each in changes]
        )
        stack.push_async_callback(control.close)
        room = DiskRoom(
            config.data_dir,
            disk_marks(config),
            reusable_bytes=store.reusable_bytes,
            checkpoint=store.checkpoint,
            gauge=gauge,
        )
        await room.look()
        signer, push_tokens, blob_store = _open_files(config.data_dir, room)
        stack.push_async_callback(blob_store.close)
        epoch = await _begin_epoch(store, config, clock)
        for deployment in known:
            await store.put_deployment(push_tokens.sealed(deployment), clock.now())
        for deployment in await store.list_deployments():  # of earlier releases
            sealed = push_tokens.sealed(deployment)
            if sealed.push_token is not None and sealed is not deployment:
                former = deployment.push_token or ""
                await store.seal_push_token(deployment.deployment_id, former, sealed.push_token)
        services = build_services(
            store=store,
            blobs=blob_store,
            links=signer,
            clock=clock,
            limits=command_limits(config),
            epoch=epoch,
            check_room=lambda size: room.check_blob(size, is_result=False),
        )
        parts = ServerParts(
            store=store,
            blobs=blob_store,
            signer=signer,
            clock=clock,
            services=services,
            room=room,
        )
        oidc = OidcTokens(oidc_providers(config.oidc), clock, oidc_limits(config.oidc))
        stack.push_async_callback(oidc.close)
        authenticator = Authenticator(
            store,
            clock,
            cache_seconds=config.auth.token_cache_seconds,
            no_auth=config.auth.disabled,
            access=AccessTokens(signer, clock),
            bootstrap=BootstrapTokens(signer, clock),
            oidc=oidc,
        )
        revoked = Revoked()
        application = Application(
            all_routes(parts, config),
            authenticator=authenticator,
            revoked=revoked,
            limits=config.http,
            base_urls=BaseUrls(config.public_url),
            guard=BrowserGuard(config.public_url) if config.auth.disabled else None,
            room=room,
            meter=meter,
        )
        http = HttpServer(application, config.http, meter)
        server = RunningServer(url, parts, http, tls)
        dispatcher = HttpDispatcher(
            config.push.timeout_seconds, push_hosts(config), push_tokens.open
        )
        stack.push_async_callback(dispatcher.close)
        outbox = Outbox(
            store=store,
            envelopes=services.envelopes,
            announcements=services.announcements,
            dispatcher=dispatcher,
            clock=clock,
            limits=push_limits(config),
            base_url=with_prefix(config.public_url or url),
            epoch=epoch.id,
            meter=meter,
        )
        sweeper = Sweeper(
            store=store,
            announcements=services.announcements,
            agents=services.agents,
            clock=clock,
            limits=sweep_limits(config),
        )
        changes.append(lambda method: outbox.refresh() if method == "set_push" else None)
        retention = Retention(
            store=store,
            blobs=blob_store,
            uploads=services.uploads,
            announcements=services.announcements,
            clock=clock,
            limits=retention_limits(config),
            is_tight=lambda: room.level >= DiskLevel.SOFT,
            meter=meter,
        )
        answer_keeping_calls(control, retention)
        if metrics_listener is not None and isinstance(meter, CountingMeter):
            await store.begin_metering(meter)
            sources = Sources(
                store=store,
                announcements=services.announcements,
                http=http,
                outbox=outbox,
                room=room,
                tls=tls,
                clock=clock,
                epoch=epoch,
            )
            endpoint = MetricsEndpoint(meter, sources, parts.readiness)
            stack.push_async_callback(endpoint.close)
            await endpoint.open(metrics_listener)
        server.steps = lambda: sweeper.steps
        run = partial(in_background, stack, server.fail)
        run("store", _until_failed(store))
        await sweeper.begin()
        run("sweeper", sweeper.run())
        run("disk", room.run(config.disk.check_seconds))
        run("retention", retention.run())
        run("outbox", outbox.run(), patience_seconds=PUSH_STOP_SECONDS)
        revocations = Revocations(
            store=store,
            authenticator=authenticator,
            waits=application.waits,
            revoked=revoked,
            announce=services.announcements.announce_swept,
            clock=clock,
            interval_seconds=config.auth.revocation_seconds,
        )
        await revocations.check()
        run("revocations", revocations.run())
        for listener in listeners:
            await http.listen(listener.socket, None if listener.host is None else tls)
        if tls is not None:
            tls.warn_of_expiry()
            run("tls", tls.follow(config.tls.check_seconds))
        stack.push_async_callback(_close, http, server)
        stack.callback(services.announcements.close)
        stack.callback(http.stop_listening)
        yield server
    log.info("server.stopped")


def open_listeners(config: ServerConfig, stack: AsyncExitStack) -> Sequence[Listener]:
    """Return the sockets that systemd handed over, or else one that is bound to `listen`.

    The stack closes them. Raises CannotStart, and SettingsError for a socket that the configuration
    does not allow.
    """
    try:
        inherited = systemd.inherited_sockets()
        listeners = [*map(Listener, inherited)] or [bind(listen_address(config))]
    except ValueError as error:
        raise CannotStart(f"listen: {error}") from None
    except OSError as error:
        raise CannotStart(f"listen: {config.listen}: {error.strerror}") from None
    for listener in listeners:
        stack.callback(listener.socket.close)
    for listener in listeners:
        check_exposure(config, listener.host)
    if inherited:
        log.info("server.sockets_inherited", sockets=len(inherited))
    return listeners


def _open_metrics_listener(config: ServerConfig, stack: AsyncExitStack) -> Listener | None:
    """Return the socket of `metrics.listen`; None if it is off. Raises CannotStart."""
    address = metrics_address(config)
    if address is None:
        return None
    try:
        listener = bind(address)
    except OSError as error:
        raise CannotStart(f"metrics.listen: {config.metrics.listen}: {error.strerror}") from None
    stack.callback(listener.socket.close)
    return listener


async def open_store(data_dir: Path, *, patience_seconds: float = 0) -> SqliteStore:
    """Open the database of a data directory as the only process; make it if there is none.

    Raises CannotStart, and DataDirInUse if another process still has it after `patience_seconds`.
    """
    _make_data_dir(data_dir)
    await asyncio.to_thread(make_room_to_open, data_dir)
    until = time.monotonic() + patience_seconds
    while True:
        try:
            return await SqliteStore.open(data_dir / DATABASE)
        except StoreLocked as error:
            if time.monotonic() >= until:
                hint = "--data-dir names another directory"
                raise DataDirInUse(f"data_dir: {error}; {hint}") from None
        except StoreRefused as error:
            raise CannotStart(f"data_dir: {error}") from None
        except OSError as error:
            raise CannotStart(f"data_dir: {data_dir}: {error.strerror}") from None
        await asyncio.sleep(LOCK_RETRY_SECONDS)


async def _begin_epoch(store: Store, config: ServerConfig, clock: Clock) -> Epoch:
    """Return the epoch; log what the first start after a restore means for clients."""
    now = clock.now()
    epoch = await store.begin_epoch(
        now,
        freeze_seconds=config.restore.freeze_seconds,
        unknown_key_seconds=config.restore.unknown_key_seconds,
    )
    if epoch.is_frozen(now):
        log.warning(
            "server.restored",
            epoch=epoch.id,
            backed_up_at=epoch.backed_up_at,
            frozen_until=epoch.frozen_until,
            keys_unknown_until=epoch.keys_unknown_until,
        )
    return epoch


async def _open_control(data_dir: Path, store: Store, called: Callable[[str], object]) -> Control:
    """Return the open socket where the operator's commands reach the server. Raises CannotStart."""
    control = Control(data_dir / SOCKET, mode=OWNER_MODE, program="server")
    answer_store_calls(control, store, called)
    try:
        await control.open()
    except ControlError as error:
        raise CannotStart(f"data_dir: {error}") from None
    return control


@asynccontextmanager
async def keeping_without_server(config: ServerConfig, store: Store) -> AsyncGenerator[Keeping]:
    """Give the retention of a data directory whose database this process has open.

    Raises CannotStart.
    """
    signer, _, blobs = _open_files(config.data_dir, None)
    clock = SystemClock()
    services = build_services(
        store=store,
        blobs=blobs,
        links=signer,
        clock=clock,
        limits=command_limits(config),
        epoch=await store.epoch(),
    )
    try:
        yield Retention(
            store=store,
            blobs=blobs,
            uploads=services.uploads,
            announcements=services.announcements,
            clock=clock,
            limits=retention_limits(config),
        )
    finally:
        await blobs.close()


def _make_data_dir(data_dir: Path) -> None:
    """Make the directory for this user alone. Raises CannotStart if it cannot be written."""
    try:
        make_directory(data_dir)
    except OSError as error:
        raise CannotStart(f"data_dir: {data_dir}: {error.strerror}") from None
    if not os.access(data_dir, os.W_OK | os.X_OK):
        raise CannotStart(f"data_dir: {data_dir}: not writable")


def _open_files(data_dir: Path, room: DiskRoom | None) -> tuple[Signer, PushTokens, LocalBlobStore]:
    """Open the keys and blobs. Raises CannotStart."""
    try:
        signer = Signer(data_dir / KEYS)
        tokens = PushTokens(data_dir / KEYS)
        return signer, tokens, LocalBlobStore(data_dir / BLOBS, signer, room=room)
    except KeysUnusable as error:
        raise CannotStart(f"data_dir: {error}") from None
    except OSError as error:
        raise CannotStart(f"data_dir: {error.filename}: {error.strerror}") from None


async def _until_failed(store: SqliteStore) -> None:
    """Raise StoreFailed once the store has failed for good, so that the process is restarted."""
    raise StoreFailed(await store.wait_failed())


async def _close(http: HttpServer, server: RunningServer) -> None:
    """End the requests in progress: at once if the server has failed."""
    await http.close(0 if server.failure.done() else http.limits.drain_seconds)
