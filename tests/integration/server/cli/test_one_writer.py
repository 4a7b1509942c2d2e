"""One writer: while a server runs, commands reach the database through it, and only so."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from arc_protocol.errors import Conflict
from arc_runtime import control_socket
from arc_runtime.control_socket import OWNER_MODE, Control, ControlRefused, Peer, ask
from arc_runtime.sqlite_version import can_damage
from arc_server.app import DATABASE, DataDirInUse, open_store
from arc_server.auth.tokens import Scope, new_token
from arc_server.control.store_calls import SOCKET, answer_store_calls, remote_store
from arc_server.ports.store import Store
from arc_server.store.engine import opening
from arc_server.store.sqlite_store import SqliteStore
from tests.support import warm_programs


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Path]:
    """The data directory of a server process that runs."""
    data = tmp_path / "data"
    with served_at(data):
        yield data


@contextlib.contextmanager
def served_at(data: Path, *more: str) -> Iterator[str]:
    """Run a server process; yield its URL."""
    arguments = ["serve", "--data-dir", data, "--listen", "127.0.0.1:0", *more]
    with warm_programs.running("arc-server", arguments, data.parent / "server.log") as (_, printed):
        yield printed.readline().removeprefix("READY ").strip()


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of `arc-server` to its end."""
    return warm_programs.run("arc-server", arguments)


COMMANDS = (
    ("token", "create", "--scope", "admin"),
    ("token", "list", "--json"),
    ("target", "add", "d", "vault"),
    ("enrol-token", "create", "--deployment", "d"),
    ("enrol-token", "list", "--json"),
    ("credential", "list", "--json"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_never_opens_the_database_while_a_server_runs(
    served: Path, command: tuple[str, ...]
) -> None:
    traced = (
        "import sqlite3, sys\n"
        "def refuse(*_, **__): raise AssertionError('opened by a second process')\n"
        "sqlite3.connect = refuse\n"
        "from arc_server.cli.main import main\n"
        f"sys.argv = ['arc-server', *{[*command, '--data-dir', str(served)]!r}]\n"
        "main()\n"
    )

    ended = subprocess.run([sys.executable, "-c", traced], capture_output=True, text=True)

    assert ended.returncode == 0, ended.stderr


def test_what_a_command_wrote_through_the_server_is_there_afterwards(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with served_at(data):
        created = run("token", "create", "--scope", "admin", "--data-dir", data)
        [listed] = json.loads(run("token", "list", "--json", "--data-dir", data).stdout)

    [after] = json.loads(run("token", "list", "--json", "--data-dir", data).stdout)

    assert created.stdout.strip()
    assert listed == after


def test_the_socket_is_for_the_servers_user_alone(served: Path) -> None:
    assert stat.S_IMODE((served / SOCKET).stat().st_mode) == 0o600


def test_a_server_leaves_no_socket_behind(tmp_path: Path) -> None:
    with served_at(tmp_path / "data"):
        pass

    assert not (tmp_path / "data" / SOCKET).exists()


async def test_another_user_is_refused_by_the_kernels_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "_peer", lambda _: Peer(1, os.getuid() + 1))
    control = Control(tmp_path / "s", mode=OWNER_MODE, program="server")
    await control.open()

    with pytest.raises(ControlRefused, match="takes no orders of this user"):
        await asyncio.to_thread(ask, control.path, {"do": "ping"})
    await control.close()


async def test_a_server_that_does_not_answer_is_a_clear_error(tmp_path: Path) -> None:
    store = await open_store(tmp_path)  # it holds the lock, and has no socket

    ended = await asyncio.to_thread(run, "token", "list", "--data-dir", tmp_path)

    await store.close()
    assert ended.returncode == 2
    assert f"process {os.getpid()}" in ended.stderr
    assert f"does not answer at {tmp_path / SOCKET}" in ended.stderr


async def test_a_server_waits_for_a_command_that_has_the_database(tmp_path: Path) -> None:
    command = await open_store(tmp_path)
    starting = asyncio.create_task(open_store(tmp_path, patience_seconds=60))
    with pytest.raises(DataDirInUse):
        await open_store(tmp_path)

    await command.close()

    server = await starting
    await server.close()


@pytest.fixture
async def remote(tmp_path: Path) -> Any:
    """A store behind a socket, and the socket."""
    store = await open_store(tmp_path)
    control = Control(tmp_path / SOCKET, mode=OWNER_MODE, program="server")
    answer_store_calls(control, store)
    await control.open()
    yield remote_store(tmp_path / SOCKET)
    await control.close()
    await store.close()


async def called(call: Any) -> Any:
    return await asyncio.to_thread(asyncio.run, call)


async def test_records_come_through_the_socket_as_they_are(remote: Store) -> None:
    made = new_token(Scope.SENDER, ("d",), datetime.now(UTC))

    await called(remote.put_token(made.stored, made.secret))

    [listed] = await called(remote.list_tokens())
    found = await called(remote.find_token(made.secret.token_hash))
    assert found.secret == made.secret
    # A sequence may come as a list or a tuple, which are one in JSON.
    assert msgspec.json.encode((listed, found.token)) == msgspec.json.encode((made.stored,) * 2)


@pytest.mark.parametrize(
    "request_",
    [
        {"do": "store", "method": "close"},
        {"do": "store", "method": "_write"},
        {"do": "store", "method": "database"},
        {"do": "store", "method": "list_tokens", "given": [1]},
        {"do": "store", "method": "revoke_token", "given": ["t", "yesterday"]},
        {"do": "store"},
    ],
    ids=str,
)
async def test_a_call_that_the_ports_do_not_have_is_refused(
    remote: Store, tmp_path: Path, request_: dict[str, Any]
) -> None:
    with pytest.raises(ControlRefused, match="does not know this call"):
        await asyncio.to_thread(ask, tmp_path / SOCKET, request_)


async def test_a_refusal_of_the_store_comes_through_with_its_reason(
    remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: SqliteStore) -> None:
        raise Conflict("not like this")

    monkeypatch.setattr(SqliteStore, "list_tokens", refuse)

    with pytest.raises(ControlRefused, match="not like this"):
        await called(remote.list_tokens())


async def test_no_reader_checkpoints(tmp_path: Path) -> None:
    reader = await opening.open_reader(tmp_path / "r.db", busy_timeout_seconds=1)

    [(pages,)] = await reader.run(
        lambda: reader.raw.execute("PRAGMA wal_autocheckpoint").fetchall()
    )

    await reader.close()
    assert pages == 0


async def test_the_writer_closes_last_and_checkpoints(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / DATABASE)
    made = new_token(Scope.ADMIN, None, datetime.now(UTC))
    await store.put_token(made.stored, made.secret)

    await store.close()

    assert not (tmp_path / f"{DATABASE}-wal").exists()
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as connection:
        assert connection.execute("SELECT count(*) FROM tokens").fetchall() == [(1,)]


@pytest.mark.parametrize(
    ("found", "is_risky"),
    [
        ((3, 40, 1), True), ((3, 44, 5), True), ((3, 44, 6), False), ((3, 45, 1), True),
        ((3, 50, 6), True), ((3, 50, 7), False), ((3, 51, 2), True), ((3, 51, 3), False),
        ((3, 54, 1), False),
    ],
)  # fmt: skip
def test_a_version_of_sqlite_that_can_damage_a_database_is_known(
    found: tuple[int, int, int], is_risky: bool
) -> None:
    assert can_damage(found) is is_risky


def test_the_version_of_sqlite_is_said_at_start_and_on_request(served: Path) -> None:
    assert sqlite3.sqlite_version in (served.parent / "server.log").read_text()
    assert f"SQLite {sqlite3.sqlite_version}" in run("--version").stdout
