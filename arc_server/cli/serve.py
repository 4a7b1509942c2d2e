"""`arc-server serve`: the life of the server process."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

import structlog
import typer

from arc_protocol.errors import ArcError
from arc_runtime import sqlite_version, systemd
from arc_runtime.children import keep_exit_statuses, keep_signals_apart
from arc_runtime.config.settings import SettingsError
from arc_runtime.hang_up import HangUp
from arc_runtime.logs import setup
from arc_server.app import RunningServer, serving
from arc_server.cli.database import FAILED, ConfigOption, DataDirOption, run_loop
from arc_server.config.reading import exposed_secrets, load_config
from arc_server.config.sections import ServerConfig

log = structlog.get_logger(__name__)

STILL_SECONDS: Final = 30.0
"""The longest batch of the sweeper, on a slow disk under load."""
STOP_SLACK_SECONDS: Final = 25.0
"""The time that closing the database takes at worst, on top of the requests in progress."""

OWN_DESCRIPTORS: Final = 500
"""Files that the server needs beside its connections: database, blobs in transfer, pushes."""

_LOOK_SECONDS: Final = 1.0
"""The interval at which the server looks whether it can open a file."""
_WARNING_SECONDS: Final = 60.0

COLLECTED_AFTER: Final = (20_000, 20, 50)
"""The thresholds of the garbage collector. Almost no object of the server is part of a cycle; with
Python's own thresholds the collector takes an eighth of the CPU time of a busy server."""


def serve(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Address to serve on; port 0 picks a free one"),
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Treat every caller as an admin (loopback only)")
    ] = False,
) -> None:
    """Run the server until SIGTERM"""

    def load() -> ServerConfig:
        overrides = {
            "data_dir": data_dir,
            "listen": listen,
            "auth.disabled": True if no_auth else None,
        }
        return load_config(config, overrides)

    raise typer.Exit(run_loop(_serve(load, config)))


async def _serve(load: Callable[[], ServerConfig], file: Path | None) -> int:
    """Run a server until it is stopped or fails; return the exit code."""
    config = load()
    setup.configure(config.log.format, config.log.level)
    _warn_of_exposed_secrets(config, file)
    _raise_descriptor_limit(config.http.max_connections)
    async with serving(config) as server:
        stopping = _on_signals(server, load, file)
        _log_sqlite_version()
        _spare_collections()
        sys.stdout.write(f"READY {server.url}\n")
        sys.stdout.flush()
        systemd.ready()
        log.info("server.ready", url=server.url, data_dir=str(config.data_dir))
        warning = asyncio.create_task(_warn_of_descriptors(), name="descriptors")
        watching = asyncio.create_task(
            _watch(server, STILL_SECONDS + config.sweeper.interval_seconds), name="watch"
        )
        await asyncio.wait((stopping, server.failure), return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        warning.cancel()
        systemd.stopping(config.http.drain_seconds + STOP_SLACK_SECONDS)
        if server.failure.done():
            log.error("server.failed", reason=str(server.failure.exception()))
            return FAILED
        log.info("server.stopping", signal=stopping.result().name)
    return 0


def _warn_of_exposed_secrets(config: ServerConfig, file: Path | None) -> None:
    for line in exposed_secrets(config, file):
        log.warning("secret.exposed", reason=line)


def _raise_descriptor_limit(max_connections: int) -> None:
    """Let the process open as many files as it may, and warn if its connections need more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = max_connections + OWN_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and hard < needed:
        hint = "raise LimitNOFILE= of the unit, or lower http.max_connections"
        log.warning("server.few_descriptors", descriptors=hard, needed=needed, hint=hint)


def _log_sqlite_version() -> None:
    """Log the version of SQLite, and what to heed where it has the fault of `sqlite_version`.

    That is no warning: the server itself opens the database by one connection that writes.
    """
    found = sqlite_version.version()
    hint = {"hint": sqlite_version.HINT} if sqlite_version.can_damage(found) else {}
    log.info("server.sqlite", sqlite=".".join(map(str, found)), **hint)


def _spare_collections() -> None:
    """Spare the garbage collector the objects that are there now and stay."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTED_AFTER)


async def _watch(server: RunningServer, patience_seconds: float) -> None:
    """Report the status to systemd, and feed its watchdog while the database reads and writes."""
    steps, stepped_at = -1, time.monotonic()

    async def trouble() -> str | None:
        nonlocal steps, stepped_at
        with suppress(ArcError):  # an error is an answer; no answer at all starves the watchdog
            await server.parts.store.check()
        if server.steps() != steps:
            steps, stepped_at = server.steps(), time.monotonic()
        is_still = time.monotonic() - stepped_at > patience_seconds
        return "the sweeper stands still: the database takes no writes" if is_still else None

    await systemd.keep_notified(trouble, lambda: f"serving on {server.url}")


async def _warn_of_descriptors() -> None:
    """Log once a minute that no descriptors are left: uvloop refuses connections in silence."""
    while True:
        try:
            os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            hint = "raise LimitNOFILE= of the unit"
            log.error("server.no_descriptors", reason=error.strerror, hint=hint)
            await asyncio.sleep(_WARNING_SECONDS)
        else:
            await asyncio.sleep(_LOOK_SECONDS)


def _on_signals(
    server: RunningServer, load: Callable[[], ServerConfig], file: Path | None
) -> asyncio.Future[signal.Signals]:
    """Stop the server on SIGTERM and SIGINT, at once on the second; reload it on SIGHUP.

    A SIGHUP of a terminal that was closed stops it, too.
    """
    loop, hang_up = asyncio.get_running_loop(), HangUp()
    stopping: asyncio.Future[signal.Signals] = loop.create_future()

    def stop(number: signal.Signals) -> None:
        if stopping.done():
            os._exit(128 + number)  # all that was acknowledged is durable
        stopping.set_result(number)

    def reload() -> None:
        if hang_up.has_come():
            if not stopping.done():
                stopping.set_result(signal.SIGHUP)
            return
        systemd.reloading()
        try:
            server.reload()
            config = load()
            setup.configure(config.log.format, config.log.level)
            _warn_of_exposed_secrets(config, file)
            log.info("server.reloaded", log_level=config.log.level)
        except SettingsError as error:
            log.warning("server.reload_failed", reason=str(error))
        finally:
            systemd.ready()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGHUP, reload)
    keep_signals_apart()
    keep_exit_statuses()
    return stopping
