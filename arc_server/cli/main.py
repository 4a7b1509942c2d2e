"""`arc-server`: serve, tokens, keys, check-config.

Exit codes: 0 done; 1 it failed while it ran, or there is no such thing; 2 usage or configuration.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import structlog
import typer

from arc_protocol.errors import ArcError
from arc_protocol.messages.base import Name
from arc_runtime import systemd
from arc_runtime.config.settings import SettingsError
from arc_runtime.logs import setup
from arc_server.app import KEYS, CannotStart, RunningServer, serving
from arc_server.auth.tokens import Scope, new_token
from arc_server.cli.credentials import credentials, enrol_tokens
from arc_server.cli.store import (
    ConfigOption,
    DataDirOption,
    JsonOption,
    print_table,
    run_loop,
    with_store,
)
from arc_server.config.parts import deployments, max_url_seconds
from arc_server.config.reading import load_config
from arc_server.config.sections import ServerConfig
from arc_server.ports.credentials import TokenStore
from arc_server.ports.records import BearerToken
from arc_server.server_keys import FILE_NAME, KeysUnusable, read_keys, rotate

log = structlog.get_logger(__name__)

FAILED: Final = 1
UNUSABLE: Final = 2
STILL_SECONDS: Final = 30.0
"""The sweeper's longest batch, on a slow disk under load."""
STOP_SLACK_SECONDS: Final = 25.0
"""What closing the database takes at worst, on top of the requests in progress."""
KEY_SLACK_SECONDS: Final = 3600
"""Kept on top of the life of a retired key's URLs: a server may sign with it until it notices."""

COLLECTED_AFTER: Final = (20_000, 20, 50)
"""Objects made until the collector looks at the young ones, and so on. Almost nothing here is in a
cycle; with Python's own numbers the collector takes an eighth of the CPU time of a busy server."""

cli = typer.Typer(
    name="arc-server",
    help="The server of ARC: takes commands, hands them to agents, keeps their results.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
tokens = typer.Typer(no_args_is_help=True, help="Bearer tokens. Also while it runs.")
keys = typer.Typer(
    no_args_is_help=True, help="The keys that sign URLs. Also while the server runs."
)
cli.add_typer(tokens, name="token")
cli.add_typer(keys, name="keys")
cli.add_typer(enrol_tokens, name="enrol-token")
cli.add_typer(credentials, name="credential")


def main() -> None:
    """The entry point: what cannot be used ends with one line and exit code 2."""
    try:
        cli()
    except (SettingsError, CannotStart, KeysUnusable) as error:
        sys.stderr.write(f"arc-server: {error}\n")
        raise SystemExit(UNUSABLE) from None
    except ArcError as error:
        sys.stderr.write(f"arc-server: {error.message}\n")
        raise SystemExit(FAILED) from None


@cli.command()
def serve(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT; port 0 picks a free one.")] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Every caller is an admin. On loopback only.")
    ] = False,
) -> None:
    """Serve until SIGTERM. Prints READY and the URL once it does."""

    def load() -> ServerConfig:
        overrides = {
            "data_dir": data_dir,
            "listen": listen,
            "auth.disabled": True if no_auth else None,
        }
        return load_config(config, overrides)

    raise typer.Exit(run_loop(_serve(load)))


@cli.command("check-config")
def check_config(file: Annotated[Path, typer.Argument(help="A configuration in YAML.")]) -> None:
    """Say whether a configuration can be used; exit code 2 if not."""
    deployments(load_config(file))
    sys.stdout.write(f"{file}: good\n")


def _administration(verb: str, text: str) -> None:
    """Add a command that has a parser of its own."""

    @cli.command(
        verb,
        help=text,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        add_help_option=False,
    )
    def run(context: typer.Context) -> None:  # pyright: ignore[reportUnusedFunction]
        from arc_server.cli.install import front

        raise typer.Exit(front().main([verb, *context.args]))


_administration("install", "Install the server on this host, as a unit of systemd.")
_administration("uninstall", "Take that back.")
_administration("upgrade", "Go to another version, and back when it does not come up.")


@tokens.command("create")
def create_token(
    scope: Annotated[Scope, typer.Option(help="What it is for.")],
    deployment: Annotated[
        str | None, typer.Option(help="Bind it to one deployment: no other exists for it.")
    ] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a token and print it: this is the only time that it can be seen."""
    if deployment is not None and scope is Scope.ADMIN:
        raise typer.BadParameter("an admin token is bound to no deployment")
    if deployment is not None:
        try:
            msgspec.convert(deployment, Name)
        except msgspec.ValidationError as error:
            raise typer.BadParameter(f"--deployment: {error}") from None
    made = new_token(scope, deployment, datetime.now(UTC))

    async def put(store: TokenStore) -> None:
        await store.put_token(made.stored)

    with_store(config, data_dir, put)
    sys.stdout.write(f"{made.text}\n")
    sys.stderr.write(f"{made.stored.token_id}\n")


@tokens.command("list")
def list_tokens(
    config: ConfigOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """List tokens; never their text, which is not stored."""

    async def read(store: TokenStore) -> list[BearerToken]:
        return list(await store.list_tokens())

    found = with_store(config, data_dir, read, must_exist=True)
    if as_json:
        sys.stdout.write(msgspec.json.encode([_shown(token) for token in found]).decode() + "\n")
        return
    rows = [_shown(token) for token in found]
    print_table(rows, "id", "scope", "deployment", "created", "revoked")


@tokens.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(help="Its id, as `token list` shows it.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Revoke a token. A running server refuses it within seconds."""

    async def revoke(store: TokenStore) -> bool:
        return await store.revoke_token(token_id, datetime.now(UTC))

    if not with_store(config, data_dir, revoke, must_exist=True):
        sys.stderr.write(f"arc-server: no such token: {token_id}\n")
        raise typer.Exit(FAILED)


@keys.command("rotate")
def rotate_keys(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    forget_older: Annotated[
        bool, typer.Option("--forget-older", help="Make every URL that is out useless.")
    ] = False,
) -> None:
    """Sign with a new key from now on. URLs that are out stay good. Prints the key's id."""
    loaded = load_config(config, {"data_dir": data_dir})
    keep = timedelta(seconds=max_url_seconds(loaded) + KEY_SLACK_SECONDS)
    try:
        now_in_use = rotate(
            loaded.data_dir / KEYS, datetime.now(UTC), keep, forget_older=forget_older
        )
    except OSError as error:
        raise CannotStart(f"data_dir: {error.filename}: {error.strerror}") from None
    sys.stdout.write(f"{now_in_use[0].id}\n")


@keys.command("list")
def list_keys(
    config: ConfigOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """List the keys, the one that signs first; never their secrets."""
    loaded = load_config(config, {"data_dir": data_dir})
    try:
        found = read_keys(loaded.data_dir / KEYS / FILE_NAME)
    except OSError as error:
        raise CannotStart(f"data_dir: {error.filename}: {error.strerror}") from None
    rows = [{"id": key.id, "created": key.created_at, "retired": key.retired_at} for key in found]
    if as_json:
        sys.stdout.write(msgspec.json.encode(rows).decode() + "\n")
        return
    print_table(rows, "id", "created", "retired")


async def _serve(load: Callable[[], ServerConfig]) -> int:
    """The whole life of a server; its exit code."""
    config = load()
    setup.configure(config.log.format, config.log.level)
    async with serving(config) as server:
        stopping = _on_signals(server, load)
        _spare_collections()
        sys.stdout.write(f"READY {server.url}\n")
        sys.stdout.flush()
        systemd.ready()
        log.info("server.ready", url=server.url, data_dir=str(config.data_dir))
        watching = asyncio.create_task(
            _watch(server, STILL_SECONDS + config.sweeper.interval_seconds), name="watch"
        )
        await asyncio.wait((stopping, server.failure), return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        systemd.stopping(config.http.drain_seconds + STOP_SLACK_SECONDS)
        if server.failure.done():
            log.error("server.failed", reason=str(server.failure.exception()))
            return FAILED
        log.info("server.stopping", signal=stopping.result().name)
    return 0


def _spare_collections() -> None:
    """What is there now stays: the garbage collector need not walk it over and over."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTED_AFTER)


async def _watch(server: RunningServer, patience_seconds: float) -> None:
    """Tell systemd how it is; feed its watchdog while the database reads and writes."""
    steps, stepped_at = -1, time.monotonic()

    async def trouble() -> str | None:
        nonlocal steps, stepped_at
        with suppress(ArcError):  # an answer, if a sad one; no answer at all starves the watchdog
            await server.parts.store.check()
        if server.steps() != steps:
            steps, stepped_at = server.steps(), time.monotonic()
        is_still = time.monotonic() - stepped_at > patience_seconds
        return "the sweeper stands still: the database takes no writes" if is_still else None

    await systemd.keep_notified(trouble, lambda: f"serving on {server.url}")


def _on_signals(
    server: RunningServer, load: Callable[[], ServerConfig]
) -> asyncio.Future[signal.Signals]:
    """SIGTERM and SIGINT stop the server, the second one at once; SIGHUP reloads what can be."""
    loop = asyncio.get_running_loop()
    stopping: asyncio.Future[signal.Signals] = loop.create_future()

    def stop(number: signal.Signals) -> None:
        if stopping.done():
            os._exit(128 + number)  # what is acknowledged is durable
        stopping.set_result(number)

    def reload() -> None:
        systemd.reloading()
        try:
            server.reload()
            config = load()
            setup.configure(config.log.format, config.log.level)
            log.info("server.reloaded", log_level=config.log.level)
        except SettingsError as error:
            log.warning("server.reload_failed", reason=str(error))
        finally:
            systemd.ready()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGHUP, reload)
    return stopping


def _shown(token: BearerToken) -> dict[str, Any]:
    """What may be shown of a token."""
    return {
        "id": token.token_id,
        "scope": token.scope,
        "deployment": token.deployment_id,
        "created": token.created_at,
        "revoked": token.revoked_at,
    }
