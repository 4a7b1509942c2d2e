"""The spool: what it takes is there, and what is damaged does no harm."""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from arc_agent.config.sections import SpoolSection
from arc_agent.host.data_dir import DataDir, DataDirError
from arc_agent.jobs.job import ReplyTo
from arc_agent.jobs.result_files import (
    BodyWriter,
    StoredBody,
    store_bytes,
    store_file,
    store_stream,
)
from arc_agent.jobs.spool import Spool
from arc_agent.jobs.spool_rows import DEAD_KEPT, Entry
from arc_agent.net.bodies import NoRoom
from tests.support.spools import opened_spool


@pytest.fixture
def data_dir(tmp_path: Path) -> Any:
    with DataDir(tmp_path / "data") as opened:
        yield opened


@pytest.fixture
async def spool(data_dir: DataDir) -> AsyncIterator[Spool]:
    async with opened_spool(data_dir) as spool:
        yield spool


def reply_to(command_id: str = "cmd_1", **changes: Any) -> ReplyTo:
    to = ReplyTo(
        command_id=command_id,
        lease_id=f"lease_of_{command_id}",
        command="x",
        attempt=1,
        submit_url="https://arc.example.com/submit",
    )
    return replace(to, **changes)


async def put(
    spool: Spool,
    command_id: str = "cmd_1",
    *,
    message: bytes | None = b'{"status":"success"}',
    body: StoredBody | None = None,
) -> Entry:
    """Put a response in."""
    return await spool.put(reply_to(command_id), message=message, body=body)


async def message(spool: Spool, entry: Entry) -> bytes | None:
    (found,) = await spool.messages([entry])
    return found


async def test_what_is_put_is_there_after_a_restart_in_order(
    spool: Spool, data_dir: DataDir
) -> None:
    for number in range(3):
        await put(spool, f"cmd_{number}", message=b"%d" % number)
    await spool.close()
    async with opened_spool(data_dir) as again:
        assert [entry.to.command_id for entry in again.entries()] == ["cmd_0", "cmd_1", "cmd_2"]
        assert [await message(again, entry) for entry in again.entries()] == [b"0", b"1", b"2"]


async def test_a_body_stays_until_its_response_leaves(spool: Spool, data_dir: DataDir) -> None:
    body = store_bytes(data_dir, b"b" * 100, 10, spool.has_room)
    assert isinstance(body, StoredBody)
    entry = await put(spool, message=None, body=body)

    assert spool.body_path(entry).read_bytes() == b"b" * 100
    await spool.remove(entry)
    assert list(data_dir.bodies.iterdir()) == []
    assert spool.entries() == []


async def test_a_body_that_nothing_refers_to_is_cleared_at_the_start(
    spool: Spool, data_dir: DataDir
) -> None:
    store_bytes(data_dir, b"b" * 100, 10, spool.has_room)
    await spool.close()
    async with opened_spool(data_dir):
        assert list(data_dir.bodies.iterdir()) == []


async def test_a_response_whose_body_is_gone_is_buried(spool: Spool, data_dir: DataDir) -> None:
    body = store_bytes(data_dir, b"b" * 100, 10, spool.has_room)
    assert isinstance(body, StoredBody)
    entry = await put(spool, message=None, body=body)
    spool.body_path(entry).unlink()
    await spool.close()
    async with opened_spool(data_dir) as again:
        assert again.entries() == []
        assert await again.dead() == [("cmd_1", "the body is gone from the disk")]


async def test_an_upload_is_remembered_across_a_restart(spool: Spool, data_dir: DataDir) -> None:
    body = store_bytes(data_dir, b"b" * 100, 10, spool.has_room)
    assert isinstance(body, StoredBody)
    await spool.mark_uploaded(await put(spool, message=None, body=body))
    await spool.close()
    async with opened_spool(data_dir) as again:
        assert [entry.is_uploaded for entry in again.entries()] == [True]


async def test_a_new_lease_takes_a_finished_response_over(spool: Spool, data_dir: DataDir) -> None:
    entry = await put(spool)
    await spool.rebind(entry, reply_to(lease_id="lease_2", attempt=2, submit_url="https://new/"))
    await spool.close()
    async with opened_spool(data_dir) as again:
        (rebound,) = again.entries()
        assert (rebound.to.lease_id, rebound.to.attempt, rebound.to.submit_url) == (
            "lease_2",
            2,
            "https://new/",
        )
        assert await message(again, rebound) == b'{"status":"success"}'


async def test_the_dead_are_remembered_but_not_without_end(spool: Spool) -> None:
    for number in range(DEAD_KEPT + 5):
        await spool.bury(await put(spool, f"cmd_{number}"), "refused")

    dead = await spool.dead()
    assert len(dead) == DEAD_KEPT
    assert dead[0] == (f"cmd_{DEAD_KEPT + 4}", "refused")


async def test_a_full_disk_keeps_a_result_in_memory_and_the_spool_goes_on(spool: Spool) -> None:
    await put(spool, "cmd_1")
    await refuse_writes(spool)
    entry = await put(spool, "cmd_2", message=b"m" * 50_000)
    await take_writes(spool)
    await put(spool, "cmd_3")

    assert spool.lack() == "results are in memory only"
    assert await message(spool, entry) == b"m" * 50_000
    assert [each.to.command_id for each in spool.entries()] == ["cmd_1", "cmd_2", "cmd_3"]
    assert spool.failure is None
    await spool.remove(entry)
    assert [each.to.command_id for each in spool.entries()] == ["cmd_1", "cmd_3"]


async def test_an_io_error_ends_the_trust_in_the_spool(
    spool: Spool,
) -> None:
    failed = asyncio.Event()
    spool.on_failure(failed.set)

    def fail(_: sqlite3.Connection) -> Any:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error

    with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
        await spool.run(fail)
    entry = await put(spool)

    assert await message(spool, entry) == b'{"status":"success"}'  # still delivered
    assert spool.failure == "disk I/O error"
    assert not spool.has_room()
    await failed.wait()


async def test_there_is_room_until_the_limits(data_dir: DataDir) -> None:
    async with opened_spool(data_dir, SpoolSection(max_bytes=100, min_free_bytes=0)) as spool:
        assert spool.has_room()
        await put(spool, message=b"x" * 100)
        assert not spool.has_room()
        spool.configure(SpoolSection(max_bytes=200, min_free_bytes=0))
        assert spool.has_room()
        spool.configure(SpoolSection(max_bytes=200, min_free_bytes=2**60))
        assert not spool.has_room()


async def test_nobody_else_can_read_it(spool: Spool, data_dir: DataDir) -> None:
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (data_dir.path, data_dir.path / "spool.db", data_dir.bodies)
    }

    assert modes == {"data": 0o700, "spool.db": 0o600, "bodies": 0o700}


def test_one_agent_a_directory(tmp_path: Path) -> None:
    with DataDir(tmp_path / "data"), pytest.raises(DataDirError, match="used by another agent"):
        DataDir(tmp_path / "data")
    DataDir(tmp_path / "data").close()


# Bodies on their way


def test_what_fits_stays_in_memory(data_dir: DataDir) -> None:
    assert store_bytes(data_dir, b"abc", 3, lambda: True) == b"abc"
    assert list(data_dir.temporary.iterdir()) == []


def test_a_writer_moves_to_a_file_when_it_no_longer_fits(data_dir: DataDir) -> None:
    writer = BodyWriter(data_dir, 5, lambda: True)
    for part in (b"abc", b"def", b"ghi"):
        writer.write(part)

    body = writer.finish()

    assert isinstance(body, StoredBody)
    assert (data_dir.bodies / body.name).read_bytes() == b"abcdefghi"
    assert body.size == 9
    assert body.sha256 == "19cc02f26df43cc571bc9ed7b0c4d29224a3ec229529221725ef76d021c8326f"


def test_no_room_leaves_no_file_behind(data_dir: DataDir, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100)

    with pytest.raises(NoRoom):
        store_file(data_dir, source, 10, lambda: False)

    assert list(data_dir.temporary.iterdir()) == []
    assert source.exists()


async def test_a_stream_that_breaks_leaves_no_file_behind(data_dir: DataDir) -> None:
    async def chunks() -> AsyncIterator[Any]:
        yield b"x" * 100
        yield "text"

    with pytest.raises(TypeError, match="yields str instead of bytes"):
        await store_stream(data_dir, chunks(), 10, lambda: True)

    assert list(data_dir.temporary.iterdir()) == []


async def test_a_stream_that_is_cancelled_while_it_is_written_leaves_no_file(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on = threading.Event(), threading.Event()
    token_hex = secrets.token_hex

    def slow(size: int) -> str:
        writing.set()
        go_on.wait(20)
        return token_hex(size)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x" * 100

    monkeypatch.setattr(secrets, "token_hex", slow)
    storing = asyncio.create_task(store_stream(data_dir, chunks(), 10, lambda: True))
    await asyncio.to_thread(writing.wait, 20)
    storing.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait({storing})

    assert storing.cancelled()
    assert list(data_dir.temporary.iterdir()) == []
    assert list(data_dir.bodies.iterdir()) == []


async def test_a_stream_is_closed_when_it_is_cut_short(data_dir: DataDir) -> None:
    closed = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        try:
            yield b"x" * 100
            os.sched_yield()
            yield b"x" * 100
        finally:
            closed.set()

    with pytest.raises(NoRoom):
        await store_stream(data_dir, chunks(), 10, lambda: False)
    await asyncio.sleep(0)

    assert closed.is_set()


async def refuse_writes(spool: Spool) -> None:
    """From now on the disk is full: the database may not grow by a page."""
    ((pages,),) = await spool.select("PRAGMA page_count")
    await spool.select(f"PRAGMA max_page_count = {pages}")


async def take_writes(spool: Spool) -> None:
    """There is room again."""
    await spool.select("PRAGMA max_page_count = 1000000")


LARGE = b"x" * 40_000
"""Takes more pages than are free in the file."""


async def test_what_a_full_disk_refused_is_written_when_there_is_room_in_its_old_place(
    spool: Spool, data_dir: DataDir
) -> None:
    await put(spool, "cmd_0")
    await refuse_writes(spool)
    first = await put(spool, "cmd_1", message=LARGE)
    assert not spool.has_room()
    assert await message(spool, first) == LARGE
    await spool.persist()  # still full
    assert not spool.has_room()
    await take_writes(spool)
    await put(spool, "cmd_2")
    await spool.persist()
    assert spool.has_room()
    await spool.close()
    async with opened_spool(data_dir) as again:
        assert [entry.to.command_id for entry in again.entries()] == ["cmd_0", "cmd_1", "cmd_2"]
        assert await message(again, next(e for e in again.entries() if e.seq == first.seq)) == LARGE


async def test_what_was_delivered_from_memory_is_not_written_any_more(
    spool: Spool, data_dir: DataDir
) -> None:
    await refuse_writes(spool)
    kept = await put(spool, "cmd_1", message=LARGE)
    other = await put(spool, "cmd_2", message=LARGE)
    await spool.remove(kept)
    await take_writes(spool)
    writing = asyncio.create_task(spool.persist())
    await asyncio.sleep(0)  # it has begun
    await spool.remove(other)
    await writing
    await spool.close()
    async with opened_spool(data_dir) as again:
        assert again.entries() == []


async def test_what_changes_while_it_is_written_is_written_as_it_is_then(
    spool: Spool, data_dir: DataDir
) -> None:
    await refuse_writes(spool)
    kept = await put(spool, "cmd_1", message=LARGE)
    await take_writes(spool)
    writing = asyncio.create_task(spool.persist())
    await asyncio.sleep(0)
    await spool.rebind(kept, reply_to(lease_id="lease_2", attempt=2, submit_url=None))
    await writing
    await spool.persist()
    await spool.close()
    async with opened_spool(data_dir) as again:
        assert [entry.to.lease_id for entry in again.entries()] == ["lease_2"]


async def test_a_place_in_the_order_is_never_used_again(data_dir: DataDir) -> None:
    async with opened_spool(data_dir) as spool:
        last = await put(spool, "cmd_1")
        await spool.remove(last)
    async with opened_spool(data_dir) as again:
        assert (await put(again, "cmd_2")).seq > last.seq


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_bytes": 0}, "spool.max_bytes"),
        ({"min_free_bytes": 1 << 62}, "spool.min_free_bytes"),
        ({"min_free_inodes": 1 << 62}, "spool.min_free_inodes"),
        ({}, None),
    ],
)
async def test_every_limit_says_which_it_is(
    spool: Spool, limits: dict[str, int], reason: str | None
) -> None:
    spool.configure(SpoolSection(**{"min_free_bytes": 0, "min_free_inodes": 0, **limits}))

    lack = spool.lack()

    assert (lack is None) == (reason is None)
    assert reason is None or (lack is not None and reason in lack)


async def test_a_disk_that_does_not_count_files_has_room(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(spool.data_dir.path)
    fields = list(real)
    fields[5] = fields[6] = fields[7] = 0  # f_files, f_ffree, f_favail
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result(fields))

    assert spool.has_room()
