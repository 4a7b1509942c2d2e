"""Opening a database: inspection before anything is touched, settings, migrations."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from arc_runtime.directories import sync_directory
from arc_server.store.engine import faults, queries, schema
from arc_server.store.engine.refusals import StoreCorrupt, StoreLocked, StoreRefused
from arc_server.store.engine.snapshots import write_snapshot
from arc_server.store.engine.thread import Worker, worker

_FULL: Final = "the disk is full; make room on it, and start again"
_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 100
_CHECKED_WHOLE_BYTES: Final = 64 << 20
"""Up to this size every page is checked when a database is opened: below half a second."""
_SETTINGS: Final = (
    "synchronous = FULL",
    "foreign_keys = ON",
    "temp_store = MEMORY",
    "journal_size_limit = 67108864",  # the WAL shrinks again where it could not be kept small
)
_WRITER_SETTINGS: Final = (
    "cache_size = -32768",  # KiB: never dropped, no other process writes
    "cache_spill = OFF",  # write to the disk at the commit, and nowhere else
    "wal_autocheckpoint = 2000",  # pages: the WAL stays near 8 MB
)
_READER_SETTINGS: Final = (
    "query_only = ON",
    "cache_size = -8192",
    "wal_autocheckpoint = 0",  # the writer alone checkpoints
)


@contextmanager
def refusing(path: Path) -> Generator[None]:
    """Turn all that goes wrong while opening `path` into StoreRefused: one line that names it."""
    try:
        yield
    except StoreLocked:
        raise
    except StoreRefused as refusal:
        raise type(refusal)(f"{path}: {_one_line(refusal)}") from None
    except sqlite3.Error as error:
        if faults.is_damage(error):
            raise StoreCorrupt(f"{path}: the database is damaged: {_one_line(error)}") from error
        if faults.is_full(error):
            raise StoreRefused(f"{path}: cannot be opened: {_FULL}") from error
        raise StoreRefused(f"{path}: cannot be opened: {faults.name_of(error)}") from error
    except OSError as error:
        reason = _FULL if faults.is_full(error) else error.strerror or error
        raise StoreRefused(f"{path}: cannot be opened: {reason}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def inspect(path: Path) -> None:
    """Inspect a database without touching it. Without a file, make one for its owner alone.

    Raises StoreCorrupt, StoreTooNew, OSError, sqlite3.Error.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        header = os.pread(descriptor, _HEADER_BYTES, 0)
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if size == 0:
        return
    if not header.startswith(_MAGIC) or len(header) < _HEADER_BYTES:
        raise StoreCorrupt("it is not a database")
    wal = path.with_name(path.name + "-wal")
    pages = int.from_bytes(header[28:32], "big")
    page_bytes = int.from_bytes(header[16:18], "big")
    page_bytes = 65_536 if page_bytes == 1 else page_bytes
    if (not wal.exists() or wal.stat().st_size == 0) and size < pages * page_bytes:
        raise StoreCorrupt(f"it is cut off: {size} bytes of {pages * page_bytes}")
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        if schema.version_of(connection) and size <= _CHECKED_WHOLE_BYTES:
            [(verdict,)] = connection.execute("PRAGMA quick_check(1)").fetchall()
            if verdict != "ok":
                raise StoreCorrupt(f"the database is damaged: {verdict}")


async def open_writer(path: Path, *, busy_timeout_seconds: float) -> Worker:
    """Return the write connection of a database that is sound and up to date.

    Raises StoreRefused, OSError, sqlite3.Error.
    """
    connection = worker(path, busy_timeout_seconds=busy_timeout_seconds)
    await connection
    try:
        await connection.run(_prepare, connection.raw)
    except BaseException:
        await connection.close()
        raise
    return connection


async def open_reader(path: Path, *, busy_timeout_seconds: float) -> Worker:
    """Return a connection that cannot write."""
    connection = worker(path, busy_timeout_seconds=busy_timeout_seconds)
    await connection
    try:
        await connection.run(_apply, connection.raw, (*_SETTINGS, *_READER_SETTINGS))
    except BaseException:
        await connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    _apply(connection, (*_SETTINGS, *_WRITER_SETTINGS))
    version = schema.version_of(connection)
    if 0 < version < schema.newest():
        [(_, _, name)] = connection.execute("PRAGMA database_list").fetchall()
        _copy_before_migration(Path(name), version)
    schema.migrate(connection)
    schema.check(connection, queries.load())


def _copy_before_migration(path: Path, version: int) -> None:
    """Keep a copy of a database for the way back to an older release. Raises StoreRefused."""
    copy = path.with_name(f"{path.name}.schema-{version}")
    try:
        write_snapshot(path).replace(copy)
        sync_directory(path.parent)
    except OSError as error:
        raise StoreRefused(
            f"no copy of it before its schema changes ({copy.name}): {error.strerror}"
        ) from None


def lock_path(path: Path) -> Path:
    """Return the path of the file that a server locks."""
    return path.with_name(path.name + ".lock")


def _apply(connection: sqlite3.Connection, settings: tuple[str, ...]) -> None:
    [(mode,)] = connection.execute("PRAGMA journal_mode = WAL").fetchall()
    if mode != "wal":
        raise StoreRefused("its file system cannot hold a write-ahead log")
    for setting in settings:
        connection.execute(f"PRAGMA {setting}").fetchall()
