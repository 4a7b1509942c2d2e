"""Opening: one server, sound files, known schemas, and everything that was acknowledged."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from arc_protocol.messages.base import State
from arc_server.ports.records import KnownSecret
from arc_server.store.engine import opening, queries, schema
from arc_server.store.engine.refusals import StoreCorrupt, StoreLocked, StoreRefused, StoreTooNew
from arc_server.store.sqlite_store import SqliteStore
from tests.support.store_samples import (
    DEPLOYMENT,
    NOW,
    PARAMS,
    RESULT,
    UPLOAD,
    after,
    create,
    daemon,
    deployment,
    granted_ids,
    lease,
    leased,
    new,
    read,
    registration,
    response_of,
    secret,
    token,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is to be."""
    return tmp_path / "arc.db"


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    """A plain connection to it."""
    opened = sqlite3.connect(path, isolation_level=None)
    yield opened
    opened.close()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_everything_acknowledged_is_there_after_a_restart(path: Path) -> None:
    store = await SqliteStore.open(path)
    await store.put_deployment(deployment(daemon("vault")), NOW)
    held = await leased(store, idempotency_key="k", command_id="cmd_held")
    done = await leased(store, command_id="cmd_done")
    await store.complete(done.command_id, done.lease_id, RESULT, after(1))
    waiting = await create(store, command_id="cmd_waiting", params=UPLOAD)
    ready = await create(store, command_id="cmd_ready")
    await store.put_agent("agent-1", registration(), NOW)
    known = token()
    its = secret(known)
    await store.put_token(known, its)
    await store.sign_of_life(after(2))
    await store.close()

    store = await SqliteStore.open(path)

    assert await read(store, "cmd_held") == held
    assert (await read(store, "cmd_done")).state is State.SUCCEEDED
    assert await response_of(store, "cmd_done") == RESULT
    assert await read(store, "cmd_waiting") == waiting
    assert await read(store, "cmd_ready") == ready
    repeat = await store.create(new(idempotency_key="k"))
    assert repeat.is_replay
    assert (repeat.command, repeat.params) == (held, PARAMS)
    assert await store.get_deployment(DEPLOYMENT) == deployment(daemon("vault"))
    [agent] = (await store.list_agents(None, NOW, 10)).agents
    assert list(agent.holding) == [held]
    assert await store.find_token(its.token_hash) == KnownSecret(secret=its, token=known)
    assert await store.last_sign_of_life() == after(2)
    assert granted_ids(await lease(store, 9)) == ["cmd_ready"]
    await store.close()


async def test_the_order_goes_on_after_restarts(path: Path) -> None:
    for number in range(3):
        store = await SqliteStore.open(path)
        await create(store, command_id=f"cmd_{number}")
        await create(store, command_id=f"cmd_upload_{number}", params=UPLOAD)
        await store.close()
    store = await SqliteStore.open(path)
    for number in (2, 0, 1):
        await store.mark_uploaded(f"cmd_upload_{number}", PARAMS, NOW)
        await store.close()
        store = await SqliteStore.open(path)

    granted = await lease(store, 9)

    assert granted_ids(granted) == [
        *("cmd_0", "cmd_1", "cmd_2"),
        *("cmd_upload_2", "cmd_upload_0", "cmd_upload_1"),
    ]
    await store.close()


async def test_the_database_is_durable_and_its_owners_alone(path: Path) -> None:
    store = await SqliteStore.open(path)
    await create(store)

    settings = await store.database.writes.submit(
        lambda db: [
            db.connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "cache_spill")
        ]
    )

    assert settings == ["wal", 2, 1, 0]
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    await store.close()


async def test_a_second_server_is_refused_and_the_first_goes_on(path: Path) -> None:
    first = await SqliteStore.open(path)

    with pytest.raises(StoreLocked, match=rf"\(process {os.getpid()}, .+\)$"):
        await SqliteStore.open(path)

    await create(first)
    await first.close()
    second = await SqliteStore.open(path)
    await second.close()


async def test_the_lock_ends_with_its_process(path: Path) -> None:
    program = (
        "import asyncio, sys; from pathlib import Path\n"
        "from arc_server.store.sqlite_store import SqliteStore\n"
        "from tests.support import statement_kills\n"
        "async def main():\n"
        "    statement_kills.install()\n"
        "    await SqliteStore.open(Path(sys.argv[1])); print('open', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"open\n"
        with pytest.raises(StoreLocked):
            await SqliteStore.open(path)

        process.send_signal(signal.SIGKILL)
        process.wait()

    store = await SqliteStore.open(path)
    await store.close()


async def test_a_newer_schema_is_refused_untouched(
    path: Path, connection: sqlite3.Connection
) -> None:
    await (await SqliteStore.open(path)).close()
    connection.execute(f"PRAGMA user_version = {schema.newest() + 1}")
    connection.close()
    before = digest(path)

    with pytest.raises(StoreTooNew, match="newer release") as refusal:
        await SqliteStore.open(path)

    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert digest(path) == before


@pytest.mark.parametrize("garbage", [b"not a database at all", b"\0" * 4096, os.urandom(8192)])
async def test_a_file_that_is_no_database_is_refused_untouched(path: Path, garbage: bytes) -> None:
    path.write_bytes(garbage)

    with pytest.raises(StoreCorrupt, match="not a database") as refusal:
        await SqliteStore.open(path)

    assert "\n" not in str(refusal.value)
    assert path.read_bytes() == garbage


async def test_a_database_of_another_program_is_refused_untouched(
    path: Path, connection: sqlite3.Connection
) -> None:
    connection.execute("CREATE TABLE notes (text TEXT)")
    connection.close()
    before = digest(path)

    with pytest.raises(StoreCorrupt, match="another program"):
        await SqliteStore.open(path)

    assert digest(path) == before
    assert sorted(file.name for file in path.parent.iterdir()) == ["arc.db", "arc.db.lock"]


async def _filled(path: Path) -> None:
    store = await SqliteStore.open(path)
    await asyncio.gather(*(create(store, idempotency_key=f"key-{n}") for n in range(200)))
    await store.close()


async def test_a_damaged_page_is_found_and_the_file_left_alone(path: Path) -> None:
    await _filled(path)
    damaged = bytearray(path.read_bytes())
    damaged[3 * 4096 : 4 * 4096] = os.urandom(4096)
    path.write_bytes(damaged)

    with pytest.raises(StoreCorrupt, match="damaged") as refusal:
        await SqliteStore.open(path)

    assert "\n" not in str(refusal.value)
    assert path.read_bytes() == damaged


async def test_a_damaged_database_with_work_in_its_log_is_left_alone_too(
    path: Path, tmp_path: Path
) -> None:
    await _filled(path)
    store = await SqliteStore.open(path)
    await create(store)
    copy = tmp_path / "copy"
    copy.mkdir()
    content = bytearray(path.read_bytes())
    content[20 * 4096 : 40 * 4096] = os.urandom(20 * 4096)
    (copy / "arc.db").write_bytes(content)
    shutil.copy(f"{path}-wal", copy / "arc.db-wal")
    await store.close()
    before = {file.name: digest(file) for file in copy.iterdir()}

    with pytest.raises(StoreCorrupt):
        await SqliteStore.open(copy / "arc.db")

    after_ = {file.name: digest(file) for file in copy.iterdir() if file.name in before}
    assert after_ == before


async def test_a_file_that_was_cut_off_is_refused_untouched(path: Path) -> None:
    await _filled(path)
    cut = path.read_bytes()[: 10 * 4096]
    path.write_bytes(cut)

    with pytest.raises(StoreCorrupt, match="cut off"):
        await SqliteStore.open(path)

    assert path.read_bytes() == cut


async def test_a_schema_that_lacks_something_is_refused(
    path: Path, connection: sqlite3.Connection
) -> None:
    await (await SqliteStore.open(path)).close()
    connection.execute("DROP INDEX commands_lapse")
    connection.close()

    with pytest.raises(StoreCorrupt, match="schema does not fit the query"):
        await SqliteStore.open(path)


async def test_a_directory_in_the_place_of_the_file_is_refused(path: Path) -> None:
    path.mkdir()

    with pytest.raises(StoreRefused, match="cannot be opened"):
        await SqliteStore.open(path)


async def test_a_data_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="No such file"):
        await SqliteStore.open(tmp_path / "nowhere" / "arc.db")


async def test_a_refused_store_leaves_no_lock_behind(path: Path) -> None:
    path.write_bytes(b"not a database at all")
    with pytest.raises(StoreCorrupt):
        await SqliteStore.open(path)
    path.unlink()

    store = await SqliteStore.open(path)

    await store.close()


async def test_a_copy_taken_in_the_middle_of_work_opens_with_all_that_was_acknowledged(
    path: Path, tmp_path: Path
) -> None:
    store = await SqliteStore.open(path)
    commands = [await create(store) for _ in range(20)]
    copy = tmp_path / "copy"
    copy.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", copy / f"arc.db{suffix}")

    restored = await SqliteStore.open(copy / "arc.db")

    for command in commands:
        assert await read(restored, command.command_id) == command
    await restored.close()
    await store.close()


# Migrations


def test_every_migration_brings_the_schema_one_further(connection: sqlite3.Connection) -> None:
    assert schema.version_of(connection) == 0

    assert schema.migrate(connection) == schema.newest()

    assert schema.version_of(connection) == schema.newest()
    assert schema.migrate(connection) == 0
    schema.check(connection, queries.load())


def test_idempotency_keys_survive_the_change_of_their_table(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = schema.migrations()
    monkeypatch.setattr(schema, "migrations", lambda: every[:6])
    schema.migrate(connection)
    connection.execute(
        "INSERT INTO commands (seq, command_id, deployment_id, target_id, target_type, command,"
        " state, attempt, max_attempts, created_at, is_push)"
        " VALUES (7, 'cmd_1', 'dep', 'host', 'DAEMON', 'run', 'PENDING', 1, 3, 1, 0)"
    )
    columns = (
        "deployment_id, command, key, scope, names_target, params_digest, command_seq, created_at"
    )
    keys = [
        ("dep", "run", "a", "", 0, b"1", 7, 1),
        ("dep", "run", "b", "host", 1, b"2", None, 2),
    ]
    connection.executemany(
        f"INSERT INTO idempotency_keys ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", keys
    )
    monkeypatch.undo()

    schema.migrate(connection)

    kept = connection.execute(f"SELECT {columns} FROM idempotency_keys ORDER BY key").fetchall()
    assert kept == keys


def test_a_migration_that_fails_leaves_nothing_behind(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    [*known] = schema.migrations()
    broken = schema.Migration(
        len(known) + 1, "broken", ("CREATE TABLE half (a)", "INSERT INTO nowhere VALUES (1)")
    )
    monkeypatch.setattr(schema, "migrations", lambda: (*known, broken))

    with pytest.raises(sqlite3.OperationalError):
        schema.migrate(connection)

    assert schema.version_of(connection) == len(known)
    names = connection.execute("SELECT name FROM sqlite_schema").fetchall()
    assert ("half",) not in names


async def test_a_migration_killed_at_any_statement_is_whole_or_not_at_all(path: Path) -> None:
    program = (
        "import asyncio, sys; from pathlib import Path\n"
        "from arc_server.store.sqlite_store import SqliteStore\n"
        "from tests.support import statement_kills\n"
        "async def main():\n"
        "    statement_kills.install()\n"
        "    store = await SqliteStore.open(Path(sys.argv[1])); await store.close()\n"
        "asyncio.run(main())\n"
    )
    for boundary in ("open:1:before", "open:12:before", "open:25:after", "open:40:after"):
        environment = {**os.environ, "ARC_STATEMENT_KILL": boundary}
        killed = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", program, path],
            env=environment,
            stderr=subprocess.PIPE,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        connection = sqlite3.connect(path)
        names = connection.execute("SELECT name FROM sqlite_schema").fetchall()
        version = schema.version_of(connection)
        connection.close()
        assert (("commands",) in names) == (version > 0)

    store = await SqliteStore.open(path)
    await create(store)
    await store.close()


def test_the_lock_is_a_file_beside_the_database(path: Path) -> None:
    assert opening.lock_path(path) == path.with_name("arc.db.lock")
