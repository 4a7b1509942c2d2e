"""Full disks, failing disks, and a process that dies at a statement."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arc_protocol.errors import StoreFull, StoreUnavailable
from arc_protocol.messages.base import State
from arc_runtime import failpoints
from arc_server.store.sqlite_store import SqliteStore
from tests.support.store_samples import NOW, RESULT, after, create, leased, read, response_of

ROOT = Path(__file__).parents[4]


def failing(number: int, name: str) -> sqlite3.OperationalError:
    """An error as the sqlite3 module raises it."""
    error = sqlite3.OperationalError(f"pretended: {name}")
    error.sqlite_errorcode = number
    error.sqlite_errorname = name
    return error


def fail_at(monkeypatch: pytest.MonkeyPatch, point: str, error: Exception) -> None:
    """Let a failpoint raise, once."""
    left = [error]

    def hit(name: str) -> None:
        if name == point and left:
            raise left.pop()

    monkeypatch.setattr(failpoints, "hit", hit)


async def _limited(limit: str, *command: str) -> Any:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    answer, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors.decode()
    return json.loads(answer.splitlines()[-1])


async def test_a_full_disk_is_unavailable_and_the_store_goes_on(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=1600k none {tmp_path}"
    trial = await asyncio.create_subprocess_exec(
        *("unshare", "-Urm", "sh", "-c", mount),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if await trial.wait() != 0:
        pytest.skip("no user namespaces here")

    answer = await _limited(
        "full",
        *("unshare", "-Urm", "sh", "-c"),
        f'{mount} && exec "$0" -m tests.support.store_at_its_limit {tmp_path} full',
        sys.executable,
    )

    assert answer["acknowledged"] > 5
    assert answer["refused"] == 20
    assert answer["reads_go_on"]
    assert not answer["has_failed"]
    assert answer["all_there"]
    assert answer["leased"] == answer["acknowledged"] + 1


async def test_a_database_that_may_not_grow_is_unavailable_and_the_store_goes_on(
    sqlite: SqliteStore,
) -> None:
    before = await create(sqlite)

    def limit(pages: int) -> Any:
        return sqlite.database.writes.submit(
            lambda db: db.connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()
        )

    await limit(1)
    with pytest.raises(StoreFull, match="is full"):
        await asyncio.gather(*(create(sqlite) for _ in range(200)))
    await limit(2**30)

    await create(sqlite, command_id="cmd_later")
    assert await read(sqlite, before.command_id) == before
    assert (await read(sqlite, "cmd_later")).state is State.PENDING


async def test_an_io_error_at_a_commit_stops_the_store_for_good(tmp_path: Path) -> None:
    answer = await _limited(
        "too-large",
        *(sys.executable, "-m", "tests.support.store_at_its_limit", str(tmp_path), "too-large"),
    )

    assert answer["acknowledged"] > 5
    assert "SQLITE_IOERR" in answer["reason"]
    assert answer["reads_go_on"]
    assert answer["refused"] == 2
    assert answer["all_there"]


@pytest.mark.parametrize("point", ["store.before_commit", "store.after_commit"])
@pytest.mark.parametrize(
    "error",
    [failing(1034, "SQLITE_IOERR_FSYNC"), failing(11, "SQLITE_CORRUPT"), OSError(5, "EIO")],
    ids=["fsync", "corrupt", "eio"],
)
async def test_a_commit_that_leaves_doubt_is_never_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, error: Exception
) -> None:
    store = await SqliteStore.open(tmp_path / "arc.db")
    held = await leased(store)
    fail_at(monkeypatch, point, error)

    answers = await asyncio.gather(
        create(store, command_id="cmd_a"),
        store.complete(held.command_id, held.lease_id, RESULT, NOW),
        return_exceptions=True,
    )

    assert all(isinstance(answer, StoreUnavailable) for answer in answers)
    assert "must be opened anew" in await asyncio.wait_for(store.wait_failed(), 5)
    for call in (create(store), store.cancel(held.command_id, NOW), store.check()):
        with pytest.raises(StoreUnavailable, match="has failed"):
            await call
    await store.close()

    store = await SqliteStore.open(tmp_path / "arc.db")
    is_there = point == "store.after_commit"
    assert ((await store.get("cmd_a")) is not None) == is_there
    ended = await read(store, held.command_id)
    assert ended.state is (State.SUCCEEDED if is_there else State.DISPATCHED)
    assert await response_of(store, held.command_id) == (RESULT if is_there else None)
    await store.close()


async def test_a_commit_that_is_cleanly_undone_is_unavailable_for_all_of_its_batch(
    sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, "store.before_commit", failing(13, "SQLITE_FULL"))

    answers = await asyncio.gather(
        create(sqlite, command_id="cmd_a", target_resource_id="vault"),
        sqlite.cancel("cmd_none", NOW),
        create(sqlite, command_id="cmd_b"),
        return_exceptions=True,
    )

    assert all(isinstance(answer, StoreUnavailable) for answer in answers)
    assert await sqlite.get("cmd_a") is None
    command = await create(sqlite, command_id="cmd_a")
    assert command.target.resource_id == "default"
    await sqlite.check()


@pytest.mark.parametrize("point", ["store.before_begin", "store.after_begin"])
async def test_an_error_before_the_commit_leaves_no_doubt(
    sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    fail_at(monkeypatch, point, OSError(5, "EIO"))

    with pytest.raises(StoreUnavailable):
        await create(sqlite, command_id="cmd_a")

    assert await sqlite.get("cmd_a") is None
    await create(sqlite)


PROGRAM = """
import asyncio, sys
from pathlib import Path
from tests.support.store_samples import *
from arc_server.store.sqlite_store import SqliteStore
from tests.support import statement_kills

async def main():
    statement_kills.install()
    store = await SqliteStore.open(Path(sys.argv[1]))
    created, other = await asyncio.gather(
        store.create(new(command_id="cmd_a", idempotency_key="k")), store.create(new())
    )
    print("created", flush=True)
    granted = await lease(store)
    print("leased", granted.grants[0].command.lease_id, flush=True)
    command = granted.grants[0].command
    await store.complete("cmd_a", command.lease_id, RESULT, after(1))
    print("done", flush=True)
    await store.close()

asyncio.run(main())
"""


async def _run(path: Path, **environment: str) -> tuple[int, list[str], str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, str(path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    answer, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, answer.decode().split(), errors.decode()


async def check_what_is_left(path: Path, said: list[str]) -> None:
    """Everything acknowledged is there; what is there beyond agrees with itself."""
    store = await SqliteStore.open(path)
    found = await store.get_with_bodies("cmd_a")
    if "created" in said:
        assert found is not None
    if found is not None:
        if "leased" in said:
            assert found.command.lease_id == said[said.index("leased") + 1]
        if "done" in said:
            assert found.command.state is State.SUCCEEDED
        assert (found.command.state is State.SUCCEEDED) == (found.response == RESULT)
        assert (found.command.state is State.PENDING) == (found.command.lease_id is None)
    await store.close()


KILLED_AT = [
    *("store.before_begin=kill@1", "store.after_begin=kill@2", "store.after_operation=kill@2"),
    *("store.before_commit=kill@3", "store.after_commit=kill@1", "store.after_commit=kill@3"),
    *("store.before_answer=kill@2",),
]


@pytest.mark.parametrize("failpoint", KILLED_AT)
async def test_killed_at_a_failpoint_nothing_acknowledged_is_missing(
    tmp_path: Path, failpoint: str
) -> None:
    code, said, _ = await _run(tmp_path / "arc.db", ARC_FAILPOINT=failpoint)

    assert code == -signal.SIGKILL
    assert "done" not in said
    await check_what_is_left(tmp_path / "arc.db", said)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [2, 6, 9, 16])
async def test_killed_at_a_statement_nothing_acknowledged_is_missing(
    tmp_path: Path, number: int, when: str
) -> None:
    code, said, errors = await _run(tmp_path / "arc.db", ARC_STATEMENT_KILL=f"{number}:{when}")

    assert code == -signal.SIGKILL
    assert f"statement {number}: " in errors
    await check_what_is_left(tmp_path / "arc.db", said)


async def test_a_number_beyond_the_last_statement_kills_nobody(tmp_path: Path) -> None:
    code, said, errors = await _run(tmp_path / "arc.db", ARC_STATEMENT_KILL="100000:before")

    assert code == 0
    assert "done" in said
    assert not errors
    store = await SqliteStore.open(tmp_path / "arc.db")
    assert (await read(store, "cmd_a")).completed_at == after(1)
    await store.close()
