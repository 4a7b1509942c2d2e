"""The database for commands that use it, through the server while one runs, and their options."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer

from arc_protocol.codec import split_path
from arc_protocol.messages.base import Name
from arc_runtime.control_socket import ControlDenied, NotListening, ask
from arc_runtime.directories import kept_by_owner
from arc_runtime.terminal.prefixes import id_of
from arc_runtime.terminal.table import print_note
from arc_server.app import (
    DATABASE,
    LOCK_RETRY_SECONDS,
    CannotStart,
    DataDirInUse,
    keeping_without_server,
    open_store,
)
from arc_server.config.reading import PREFIX, load_config
from arc_server.config.sections import ServerConfig
from arc_server.control.store_calls import SOCKET, remote_keeping, remote_store
from arc_server.ports.keeping import Keeping
from arc_server.ports.store import Store

FAILED: Final = 1
UNUSABLE: Final = 2
INSTALLED_CONFIG: Final = Path("/etc/arc-server/server.yaml")
REACH_SECONDS: Final = 5.0
"""The time that a command waits for a server that starts or stops, or for another command."""
_DATA_DIR_VARIABLE: Final = f"{PREFIX}_DATA_DIR"

R = TypeVar("R")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Configuration of the server (YAML)")
]
DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Data directory of the server")
]
InitOption = Annotated[
    bool, typer.Option("--init", help="Make the database, where no server has run yet")
]


def with_store(
    config: Path | None,
    data_dir: Path | None,
    use: Callable[[Store], Coroutine[Any, Any, R]],
    *,
    makes: bool = False,
) -> R:
    """Use the database, through the server while one runs. Raises CannotStart, SettingsError.

    With `makes`, a missing database is made where the caller names a place for it.
    """
    loaded = config_here(config, data_dir, makes=makes)

    async def run() -> R:
        async with reached_store(loaded.data_dir) as store:
            return await use(store)

    return run_loop(run())


def with_keeping(
    config: Path | None,
    data_dir: Path | None,
    use: Callable[[Keeping], Coroutine[Any, Any, R]],
) -> R:
    """Have commands and blobs removed, through the server while one runs.

    Raises CannotStart, SettingsError.
    """
    loaded = config_here(config, data_dir)

    async def run() -> R:
        with kept_by_owner(loaded.data_dir):
            own = await _opened(loaded.data_dir)
            if own is None:
                return await use(remote_keeping(loaded.data_dir / SOCKET))
            try:
                async with keeping_without_server(loaded, own) as keeping:
                    return await use(keeping)
            finally:
                await own.close()

    return run_loop(run())


@asynccontextmanager
async def reached_store(data_dir: Path) -> AsyncGenerator[Store]:
    """Give the store of a data directory: that of the server that runs, or its own if none does.

    Two connections to one database can damage it in many versions of SQLite, so the database is
    opened under the lock of the directory only. Raises CannotStart.
    """
    with kept_by_owner(data_dir):
        own = await _opened(data_dir)
        if own is None:
            yield remote_store(data_dir / SOCKET)
            return
        try:
            yield own
        finally:
            await own.close()


async def _opened(data_dir: Path) -> Store | None:
    """Open a database; None if a server that runs has it. Raises CannotStart."""
    socket = data_dir / SOCKET
    until = time.monotonic() + REACH_SECONDS
    while True:
        try:
            return await open_store(data_dir)
        except DataDirInUse as error:
            if _listens(socket):
                return None
            if time.monotonic() >= until:
                raise CannotStart(f"{error}; it does not answer at {socket}") from None
        await asyncio.sleep(LOCK_RETRY_SECONDS)


def _listens(socket: Path) -> bool:
    """Return True if a server listens at a socket. Raises CannotStart if this user may not."""
    try:
        ask(socket, {"do": "ping"})
    except ControlDenied as error:
        raise CannotStart(f"{error}; only root and the server's own user may") from None
    except NotListening:
        return False
    return True


def config_here(config: Path | None, data_dir: Path | None, *, makes: bool = False) -> ServerConfig:
    """Return the configuration of the server that is meant: the installed one if none is named.

    Raises SettingsError, and CannotStart where no server has its database: a token of a new one
    would be good for no server. With `makes`, a place that the caller names needs no database.
    """
    if config is not None or data_dir is not None or _DATA_DIR_VARIABLE in os.environ:
        loaded = load_config(config, {"data_dir": data_dir})
        if not makes and not _exists(loaded.data_dir / DATABASE):
            raise CannotStart(
                f"no server here: {loaded.data_dir} holds no database (`arc-server serve`"
                " makes one, and so does --init of the commands that create tokens)"
            )
        return loaded
    loaded = load_config(INSTALLED_CONFIG if _exists(INSTALLED_CONFIG) else None)
    if not _exists(loaded.data_dir / DATABASE):
        raise CannotStart("no server here; name --config or --data-dir")
    return loaded


def _exists(path: Path) -> bool:
    """Return True if a path exists, or may exist where this user may not look."""
    try:
        return path.exists()
    except PermissionError:
        return True


def run_loop(main: Coroutine[Any, Any, R]) -> R:
    """Run on uvloop if it is installed: it halves the cost of the event loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def checked_deployment(deployment: str) -> str:
    """Return the value of --deployment. Raises BadParameter for a malformed id."""
    try:
        return msgspec.convert(deployment, Name)
    except msgspec.ValidationError as error:
        raise typer.BadParameter(f"--deployment: {split_path(str(error))[0]}") from None


def revoke_by_prefix(
    config: Path | None,
    data_dir: Path | None,
    given: str,
    kind: str,
    *,
    ids: Callable[[Store], Awaitable[Sequence[str]]],
    revoke: Callable[[Store, str], Awaitable[bool]],
) -> None:
    """Revoke the only thing whose id begins so, and name it. Raises PrefixError otherwise."""

    async def use(store: Store) -> str:
        whole = id_of(given, await ids(store), kind)
        await revoke(store, whole)
        return whole

    print_note(f"{with_store(config, data_dir, use)} is revoked")
