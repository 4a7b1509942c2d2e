"""The collection of blobs on a real directory, beside uploads, deaths and backups."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from arc_protocol.errors import StorageOperationFailed
from arc_runtime import failpoints
from arc_server.blobs import collection
from arc_server.blobs.collection_hold import hold_collection
from arc_server.blobs.local import TEMPORARY, LocalBlobStore
from arc_server.ports.records import Collected
from arc_server.server_keys import Signer

GRACE = 3600.0
LIMIT = 1 << 20


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalBlobStore]:
    store = LocalBlobStore(tmp_path / "blobs", Signer(tmp_path / "keys"))
    yield store
    await store.close()


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def put(store: LocalBlobStore, path: str, *, age: float = 2 * GRACE) -> Path:
    """Store a blob that seems to have been written a while ago; return its file."""
    await store.write(path, chunks(b"data"), LIMIT)
    file = store.root / f"{path}.blob"
    at = time.time() - age
    os.utime(file, (at, at))
    return file


def wanting(*paths: str) -> Callable[[str], AsyncIterator[bool]]:
    async def is_wanted(path: str) -> bool:
        return path in paths

    return is_wanted  # type: ignore[return-value]


async def collect(store: LocalBlobStore, *wanted: str) -> Collected:
    return await store.collect(wanting(*wanted), GRACE)  # type: ignore[arg-type]


def names(store: LocalBlobStore) -> set[str]:
    """Return every file and directory below the root."""
    return {str(path.relative_to(store.root)) for path in store.root.rglob("*")}


async def test_old_blobs_that_are_not_wanted_go_with_their_directories(
    store: LocalBlobStore,
) -> None:
    await put(store, "arc/commands/a/params")
    await put(store, "arc/commands/b/params")
    await put(store, "arc/commands/c/attempts/1/lease/response", age=0)
    await store.seal("arc/commands/a/params")

    found = await collect(store, "arc/commands/b/params")

    assert found == Collected(files=1, bytes=4)
    assert await store.size("arc/commands/a/params") is None
    assert await store.size("arc/commands/b/params") == 4
    assert await store.size("arc/commands/c/attempts/1/lease/response") == 4
    assert "arc/commands/a" not in names(store)


async def test_a_blob_that_is_written_anew_between_look_and_removal_stays(
    store: LocalBlobStore,
) -> None:
    await put(store, "arc/commands/a/params")

    async def is_wanted(path: str) -> bool:
        await store.write(path, chunks(b"newer"), LIMIT)
        return False

    found = await store.collect(is_wanted, GRACE)

    assert found.files == 0
    assert await store.size("arc/commands/a/params") == 5


async def test_an_upload_that_goes_on_keeps_its_file_and_its_blob(store: LocalBlobStore) -> None:
    path = "arc/commands/a/params"
    await put(store, path)
    go_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * (1 << 20)
        await go_on.wait()
        yield b"y"

    writing = asyncio.create_task(store.write(path, slow(), 2 << 20))
    temporary = store.root / TEMPORARY
    while not list(temporary.iterdir()):
        await asyncio.sleep(0)
    at = time.time() - 2 * GRACE
    for file in temporary.iterdir():
        os.utime(file, (at, at))

    found = await collect(store)
    go_on.set()

    assert found.files == 0
    assert await writing == (1 << 20) + 1
    assert await store.size(path) == (1 << 20) + 1


async def test_unfinished_uploads_that_a_failure_has_left_are_removed(
    store: LocalBlobStore,
) -> None:
    left = store.root / TEMPORARY / "0123"
    left.write_bytes(b"part")
    young = store.root / TEMPORARY / "4567"
    young.write_bytes(b"part")
    at = time.time() - 2 * GRACE
    os.utime(left, (at, at))

    found = await collect(store)

    assert found == Collected(files=1, bytes=4)
    assert not left.exists()
    assert young.exists()


async def test_nothing_is_removed_while_a_backup_is_being_taken(store: LocalBlobStore) -> None:
    await put(store, "arc/commands/a/params")

    with hold_collection(store.root):
        assert (await collect(store)).is_held
        assert not await store.delete_all(["arc/commands/a"])
        assert await store.size("arc/commands/a/params") == 4

    assert (await collect(store)).files == 1


async def test_a_command_is_deleted_with_all_that_lies_below_it(store: LocalBlobStore) -> None:
    for path in ("a/params", "a/attempts/1/l/response", "a/planted/x", "ab/params"):
        await put(store, f"arc/commands/{path}")
    await store.seal("arc/commands/a/params")

    assert await store.delete_all(["arc/commands/a", "arc/commands/none"])

    assert await store.size("arc/commands/ab/params") == 4
    assert not [name for name in names(store) if name.startswith("arc/commands/a/")]


async def test_a_file_of_another_kind_is_left_alone(store: LocalBlobStore) -> None:
    foreign = store.root / "notes.txt"
    foreign.write_text("mine")
    link = store.root / "link.blob"
    link.symlink_to(foreign)
    os.utime(foreign, (0, 0))
    os.utime(link, (0, 0), follow_symlinks=False)

    assert (await collect(store)).files == 0

    assert foreign.exists()
    assert link.is_symlink()


async def test_empty_directories_that_a_death_has_left_are_removed(store: LocalBlobStore) -> None:
    (store.root / "arc/commands/a/attempts/1/l").mkdir(parents=True)

    await collect(store)
    await collect(store)

    assert not [name for name in names(store) if name.endswith("/l")]


@pytest.mark.parametrize("name", ["blob.before_unlink", "blob.after_unlink"])
async def test_a_death_at_a_step_of_the_collection_is_made_good_by_the_next(
    store: LocalBlobStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for command in "abc":
        await put(store, f"arc/commands/{command}/params")
    armed = failpoints.parse(f"{name}=raise@2")
    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "hit", lambda passed: armed.get(passed, lambda: None)())
        with pytest.raises(StorageOperationFailed):
            await collect(store, "arc/commands/c/params")

    await collect(store, "arc/commands/c/params")

    assert [name for name in names(store) if name.endswith(".blob")] == [
        "arc/commands/c/params.blob"
    ]


async def test_files_are_judged_in_chunks(
    store: LocalBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "CHUNK_FILES", 2)
    for number in range(5):
        await put(store, f"arc/commands/{number}/params")

    assert (await collect(store)).files == 5
