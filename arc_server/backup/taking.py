"""Taking a backup: a snapshot of the database, then exactly the blobs that it names.

The server writes the snapshot, in one step, while it goes on working. The command copies: it may
write where the server may not. Blobs are not collected meanwhile.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from arc_runtime.directories import make_directory, sync_directory
from arc_server.app import BLOBS, DATABASE, KEYS
from arc_server.backup.contents import (
    blob_file,
    blobs_of,
    counts_of,
    epoch_of,
    problems_of,
    read_database,
    snapshot_file,
)
from arc_server.backup.manifest import (
    FORMAT,
    BackedUpFile,
    BackupError,
    BackupManifest,
    check_files,
    copy_file,
    sync_tree,
    write_manifest,
)
from arc_server.blobs.collection_hold import hold_collection
from arc_server.last_backup import note_backup
from arc_server.ports.store import Store
from arc_server.store.engine import schema
from arc_server.store.engine.ended_journal import JOURNAL

_TRIES: Final = 3
"""A blob may be sealed, and so renamed, between finding and opening it."""


async def take_backup(store: Store, data_dir: Path, destination: Path) -> BackupManifest:
    """Back a data directory up to a new directory; return its manifest.

    The directory gets its name when all of it is written and read back; the data directory gets a
    note of it. Raises BackupError; nothing is left then.
    """
    try:
        with unfinished(destination) as place, hold_collection(data_dir / BLOBS):
            taken_at = datetime.now(UTC)
            with snapshot_file(await store.snapshot()) as snapshot:
                database = copy_file(snapshot, place, DATABASE)
            manifest = _fill(place, data_dir, database, taken_at)
            check_files(place, manifest)
            sync_tree(place)
            write_manifest(place, manifest)
            place.rename(destination)
            sync_directory(destination.parent)
    except OSError as error:
        raise BackupError(f"{error.filename or destination}: {error.strerror}") from None
    except sqlite3.Error as error:
        raise BackupError(f"{destination}: the snapshot cannot be read: {error}") from None
    with suppress(OSError):  # the backup is there all the same
        note_backup(data_dir, taken_at)
    return manifest


@contextmanager
def unfinished(destination: Path) -> Generator[Path]:
    """Yield a directory to fill that can be renamed to `destination`; remove it if that fails.

    Raises BackupError if something is there, OSError.
    """
    destination = destination.absolute()
    if destination.is_dir() and not any(destination.iterdir()):
        pass  # renaming replaces an empty directory
    elif destination.exists() or destination.is_symlink():
        raise BackupError(f"{destination}: is there already; name a new directory")
    place = destination.with_name(f".{destination.name}.unfinished-{os.getpid()}")
    make_directory(destination.parent)
    shutil.rmtree(place, ignore_errors=True)
    make_directory(place)
    try:
        yield place
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree(place)


def _fill(
    place: Path, data_dir: Path, database: BackedUpFile, taken_at: datetime
) -> BackupManifest:
    """Copy what belongs to a snapshot. Raises BackupError, OSError, sqlite3.Error."""
    files = [database]
    missing: list[str] = []
    with read_database(place / DATABASE) as snapshot:
        for problem in problems_of(snapshot, is_deep=False):
            raise BackupError(f"the snapshot is not sound: {problem}")
        named = {blob.path: blob for blob in blobs_of(snapshot)}
        _check_room(place, sum(blob.size or 0 for blob in named.values()))
        for blob in named.values():
            copied = _copy_blob(data_dir / BLOBS, place, blob.path)
            if copied is not None and (blob.is_awaited or copied.size == blob.size):
                files.append(copied)
            elif not blob.is_awaited:
                missing.append(blob.path)
        manifest = BackupManifest(
            format=FORMAT,
            release=version("arc-commands"),
            schema=schema.version_of(snapshot),
            epoch=epoch_of(snapshot),
            taken_at=taken_at,
            counts={**counts_of(snapshot), "blobs": len(files) - 1},
            missing=missing,
            files=files,
        )
    files += _copy_beside(data_dir, place)
    return manifest


def _copy_blob(blobs: Path, place: Path, path: str) -> BackedUpFile | None:
    """Copy a blob; None if there is none. Raises OSError."""
    for _ in range(_TRIES):
        source = blob_file(blobs, path)
        if source is None:
            return None
        with suppress(FileNotFoundError):
            return copy_file(source, place, f"{BLOBS}/{source.relative_to(blobs)}")
    return None


def _copy_beside(data_dir: Path, place: Path) -> Iterator[BackedUpFile]:
    """Copy the keys, which sign the URLs that are out, and the journal. Raises OSError."""
    for file in sorted((data_dir / KEYS).glob("*.json")):
        yield copy_file(file, place, f"{KEYS}/{file.name}")
    if (data_dir / JOURNAL).exists():
        yield copy_file(data_dir / JOURNAL, place, JOURNAL)


def _check_room(place: Path, needed_bytes: int) -> None:
    """Raise BackupError unless there is room for the blobs."""
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise BackupError(f"{place.parent}: {needed_bytes} bytes are needed and {free} are free")
