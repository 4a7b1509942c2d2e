"""The local blob store on a real directory."""

import asyncio
import errno
import hashlib
import os
import threading
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from arc_protocol.errors import (
    Conflict,
    NotFound,
    PayloadTooLarge,
    StorageOperationFailed,
    Unavailable,
)
from arc_protocol.messages.bodies import HttpBackend
from arc_runtime import failpoints
from arc_server.blobs.local import READ_BYTES, TEMPORARY, WRITE_BYTES, LocalBlobStore
from arc_server.server_keys import BLOB, Signer

PATH = "arc/commands/cmd_1/params"
LIMIT = 1 << 30


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(tmp_path / "keys")


@pytest.fixture
async def store(tmp_path: Path, signer: Signer) -> AsyncIterator[LocalBlobStore]:
    store = LocalBlobStore(tmp_path / "blobs", signer)
    yield store
    await store.close()


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def put(store: LocalBlobStore, data: bytes, path: str = PATH) -> int:
    return await store.write(path, chunks(data), LIMIT)


async def get(store: LocalBlobStore, path: str = PATH) -> bytes:
    return b"".join([chunk async for chunk in store.read(path)])


def files(root: Path) -> set[str]:
    """Every file below the blob directory, relative."""
    return {
        str(file.relative_to(root / "blobs"))
        for file in (root / "blobs").rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0],
        [1],
        [WRITE_BYTES],
        [WRITE_BYTES - 1, 2],
        [READ_BYTES + 1],
        [3, 0, 4, 2 * WRITE_BYTES],
    ],
)
async def test_what_was_written_is_read_back(store: LocalBlobStore, sizes: list[int]) -> None:
    parts = [os.urandom(size) for size in sizes]

    size = await store.write(PATH, chunks(*parts), LIMIT)

    assert size == sum(sizes) == await store.size(PATH)
    assert await get(store) == b"".join(parts)


async def test_a_part_is_read_without_the_rest(store: LocalBlobStore) -> None:
    data = os.urandom(3 * READ_BYTES)
    await put(store, data)

    read = [chunk async for chunk in store.read(PATH, 5, 2 * READ_BYTES)]

    assert b"".join(read) == data[5 : 2 * READ_BYTES]
    assert max(map(len, read)) <= READ_BYTES


async def test_a_blob_that_is_not_there_is_not_found(store: LocalBlobStore) -> None:
    assert await store.size(PATH) is None
    with pytest.raises(NotFound):
        await get(store)
    with pytest.raises(NotFound):
        await store.seal(PATH)
    await store.delete(PATH)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../keys/signing",
        "a/../b",
        "a//b",
        "a/",
        ".incoming/x",
        "a.blob",
        "a\x00b",
        "a b",
        "é",
        "a\n",
        "x" * 129,
        "/".join("abcdefghi"),
        "a\\b",
    ],
)
async def test_no_path_leads_out_of_the_directory(
    store: LocalBlobStore, tmp_path: Path, path: str
) -> None:
    with pytest.raises(NotFound):
        await put(store, b"x", path)
    with pytest.raises(NotFound):
        await get(store, path)
    assert await store.size(path) is None
    assert files(tmp_path) == set()


async def test_a_blob_and_blobs_below_it_do_not_get_in_each_others_way(
    store: LocalBlobStore,
) -> None:
    await put(store, b"one", "a/b")
    await put(store, b"two", "a/b/c")
    await put(store, b"three", "a")

    assert [await get(store, path) for path in ("a", "a/b", "a/b/c")] == [b"three", b"one", b"two"]


async def test_a_blob_may_be_replaced_until_it_is_sealed(store: LocalBlobStore) -> None:
    await put(store, b"first")
    await put(store, b"second")
    await store.seal(PATH)
    await store.seal(PATH)

    with pytest.raises(Conflict):
        await put(store, b"third")

    assert await get(store) == b"second"


async def test_an_upload_under_way_cannot_replace_what_is_sealed_meanwhile(
    store: LocalBlobStore, tmp_path: Path
) -> None:
    await put(store, b"sealed")
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * WRITE_BYTES
        started.set()
        await go_on.wait()

    upload = asyncio.create_task(store.write(PATH, slow(), LIMIT))
    await started.wait()
    await store.seal(PATH)
    go_on.set()

    with pytest.raises(Conflict):
        await upload
    assert await get(store) == b"sealed"
    assert files(tmp_path) == {f"{PATH}.sealed"}


async def test_a_blob_above_the_limit_leaves_nothing_and_stops_reading(
    store: LocalBlobStore, tmp_path: Path
) -> None:
    asked = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal asked
        while True:
            asked += 1
            yield b"x" * WRITE_BYTES

    with pytest.raises(PayloadTooLarge):
        await store.write(PATH, endless(), 3 * WRITE_BYTES)

    assert asked == 4
    assert files(tmp_path) == set()


async def test_an_upload_that_breaks_off_leaves_the_blob_before_it(
    store: LocalBlobStore, tmp_path: Path
) -> None:
    await put(store, b"before")

    async def breaking() -> AsyncIterator[bytes]:
        yield b"x" * WRITE_BYTES
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        await store.write(PATH, breaking(), LIMIT)

    assert await get(store) == b"before"
    assert files(tmp_path) == {f"{PATH}.blob"}


async def test_a_cancelled_upload_leaves_nothing(store: LocalBlobStore, tmp_path: Path) -> None:
    started = asyncio.Event()

    async def hanging() -> AsyncIterator[bytes]:
        yield b"x" * WRITE_BYTES
        started.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(store.write(PATH, hanging(), LIMIT))
    await started.wait()
    upload.cancel()

    with pytest.raises(asyncio.CancelledError):
        await upload
    assert files(tmp_path) == set()


async def test_a_file_is_not_closed_while_a_thread_writes_to_it(
    store: LocalBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on = threading.Event(), threading.Event()
    closed: list[int] = []
    handles: list[int] = []
    real_write, real_close = os.write, os.close

    def slow_write(handle: int, data: memoryview) -> int:
        handles.append(handle)
        writing.set()
        assert go_on.wait(10)
        assert handle not in closed
        return real_write(handle, data)

    def noted_close(handle: int) -> None:
        closed.append(handle)
        real_close(handle)

    monkeypatch.setattr("arc_server.blobs.local.os.write", slow_write)
    monkeypatch.setattr("arc_server.blobs.local.os.close", noted_close)
    upload = asyncio.create_task(put(store, b"x" * WRITE_BYTES))
    await asyncio.to_thread(writing.wait, 10)
    upload.cancel()
    await asyncio.wait((upload,), timeout=0.05)
    assert not upload.done()
    go_on.set()

    with pytest.raises(asyncio.CancelledError):
        await upload
    assert handles
    assert files(tmp_path) == set()


async def test_of_concurrent_uploads_the_last_one_wins_and_leaves_its_body_whole(
    store: LocalBlobStore, tmp_path: Path
) -> None:
    bodies = [bytes([number]) * (WRITE_BYTES + number) for number in range(8)]

    outcomes = await asyncio.gather(*(put(store, body) for body in bodies), return_exceptions=True)

    assert not isinstance(outcomes[-1], BaseException)
    assert any(isinstance(outcome, Conflict) for outcome in outcomes)
    assert await get(store) in bodies
    assert files(tmp_path) == {f"{PATH}.blob"}


async def test_a_reader_keeps_its_version_while_another_is_written(store: LocalBlobStore) -> None:
    first = os.urandom(2 * READ_BYTES)
    await put(store, first)

    async with store.open(PATH) as blob, aclosing(blob.chunks(0, blob.size)) as reading:
        read = await anext(reading)
        await put(store, b"second")
        await store.delete(PATH)
        async for chunk in reading:
            read += chunk

    assert read == first


async def test_deleting_leaves_no_empty_directories(store: LocalBlobStore, tmp_path: Path) -> None:
    await put(store, b"x", "a/b/c")
    await put(store, b"x", "a/d")
    await store.seal("a/b/c")

    await store.delete("a/b/c")

    assert {path.name for path in (tmp_path / "blobs").iterdir()} == {TEMPORARY, "a"}
    assert {path.name for path in (tmp_path / "blobs" / "a").iterdir()} == {"d.blob"}


async def test_writes_and_deletes_in_one_directory_do_not_lose_each_other(
    store: LocalBlobStore,
) -> None:
    async def come_and_go(name: str) -> None:
        for _ in range(20):
            await put(store, b"x", f"shared/{name}")
            assert await get(store, f"shared/{name}") == b"x"
            await store.delete(f"shared/{name}")

    await asyncio.gather(*(come_and_go(name) for name in "abcd"))


async def test_what_a_dead_process_left_unfinished_is_removed_at_the_start(
    store: LocalBlobStore, tmp_path: Path, signer: Signer
) -> None:
    await put(store, b"kept")
    (tmp_path / "blobs" / TEMPORARY / "leftover").write_bytes(b"half")

    again = LocalBlobStore(tmp_path / "blobs", signer)

    assert files(tmp_path) == {f"{PATH}.blob"}
    assert await get(again) == b"kept"
    await again.close()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, Unavailable),
        (errno.EDQUOT, Unavailable),
        (errno.EIO, StorageOperationFailed),
        (errno.EROFS, StorageOperationFailed),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync", "open", "rename"])
async def test_a_disk_that_fails_is_answered_and_leaves_nothing(
    store: LocalBlobStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    code: int,
    kind: type[Exception],
) -> None:
    await put(store, b"before")

    def failing(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    name = "os.rename" if call == "rename" else f"arc_server.blobs.local.os.{call}"
    with monkeypatch.context() as patch:
        patch.setattr(name, failing)
        with pytest.raises(kind):
            await put(store, b"x" * 2 * WRITE_BYTES)

    assert await get(store) == b"before"
    assert files(tmp_path) == {f"{PATH}.blob"}


@pytest.mark.parametrize(
    ("name", "left"), [("blob.before_rename", b"before"), ("blob.after_rename", b"after")]
)
async def test_a_failpoint_around_the_rename_leaves_the_old_blob_or_the_new_one(
    store: LocalBlobStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    left: bytes,
) -> None:
    await put(store, b"before")
    armed = failpoints.parse(f"{name}=raise")
    monkeypatch.setattr(failpoints, "hit", lambda passed: armed.get(passed, lambda: None)())

    with pytest.raises(StorageOperationFailed):
        await put(store, b"after")

    assert await get(store) == left
    assert files(tmp_path) == {f"{PATH}.blob"}


async def test_a_blob_of_200_mb_moves_in_bounded_memory(store: LocalBlobStore) -> None:
    block = os.urandom(1 << 16)
    count = 200 * (1 << 20) // len(block)
    expected = hashlib.sha256()
    for _ in range(count):
        expected.update(block)

    async def large() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield block

    tracemalloc.start()
    try:
        size = await store.write(PATH, large(), LIMIT)
        digest = hashlib.sha256()
        async for chunk in store.read(PATH):
            digest.update(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert size == count * len(block)
    assert digest.digest() == expected.digest()
    assert peak < 8 << 20


async def test_a_presigned_request_is_absolute_signed_and_without_headers(
    store: LocalBlobStore, signer: Signer
) -> None:
    until = datetime(2026, 11, 24, 12, 0, 0, 123, tzinfo=UTC)

    request = store.presign("put", PATH, "https://arc.example/v1", until)

    assert isinstance(request.backend, HttpBackend)
    assert (request.backend.method, request.backend.headers) == ("PUT", {})
    assert (request.operation, request.path) == ("put", PATH)
    assert request.expiration == until.replace(microsecond=0)
    assert request.backend.url.startswith(f"https://arc.example/v1/blobs/{PATH}?op=put&")
    query = {
        name: value for name, (value,) in parse_qs(urlsplit(request.backend.url).query).items()
    }
    assert signer.verify(
        BLOB,
        "put",
        PATH,
        expires=int(query["expires"]),
        key_id=query["kid"],
        token=query["sig"],
        now=datetime(2026, 11, 24, 11, tzinfo=UTC),
    )


async def test_nothing_but_get_and_put_is_presigned(store: LocalBlobStore) -> None:
    with pytest.raises(ValueError, match="delete"):
        store.presign("delete", PATH, "https://arc.example/v1", datetime.now(UTC))


def synced_directories(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Directories that are fsynced from now on, in order."""
    synced: list[Path] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.is_dir():
            synced.append(path)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    return synced


async def test_a_fresh_store_is_durable_in_the_directory_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = synced_directories(monkeypatch)

    store = LocalBlobStore(tmp_path / "data" / "blobs", Signer(tmp_path / "data" / "keys"))
    await store.close()

    assert {tmp_path, tmp_path / "data"} <= set(synced)


async def test_a_directory_that_somebody_else_made_is_not_taken_to_be_durable(
    store: LocalBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blobs" / PATH).parent.mkdir(parents=True)  # and died, or is not there yet
    synced = synced_directories(monkeypatch)

    await put(store, b"data")

    blobs = tmp_path / "blobs"
    assert synced == [blobs, blobs / "arc", blobs / "arc/commands", blobs / "arc/commands/cmd_1"]


async def test_what_was_synced_once_is_not_synced_again_for_every_blob(
    store: LocalBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(store, b"data")
    synced = synced_directories(monkeypatch)

    await put(store, b"data", "arc/commands/cmd_2/params")

    commands = tmp_path / "blobs" / "arc/commands"
    assert synced == [commands, commands / "cmd_2"]


async def test_a_directory_that_was_removed_meanwhile_is_made_again(
    store: LocalBlobStore, tmp_path: Path
) -> None:
    await put(store, b"old")
    await store.delete(PATH)
    await put(store, b"old", "arc/commands/cmd_2/params")
    (tmp_path / "blobs/arc/commands/cmd_2/params.blob").unlink()
    (tmp_path / "blobs/arc/commands/cmd_2").rmdir()

    await put(store, b"new")
    await put(store, b"new", "arc/commands/cmd_2/params")

    assert await get(store) == b"new"
    assert await get(store, "arc/commands/cmd_2/params") == b"new"
