"""Restoring a backup into an empty directory, in a new epoch.

A restore turns the time back. What clients know of the lost time must do no harm: the epoch
changes, all counters jump, and what had ended for good ends again by the journal.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from arc_runtime.directories import give, sync_directory
from arc_server.app import BLOBS, DATABASE
from arc_server.backup.contents import (
    RECOUNT,
    damaged_bodies,
    read_database,
    structure_problems,
)
from arc_server.backup.manifest import (
    BackupError,
    BackupManifest,
    check_files,
    copy_file,
    read_manifest,
    sync_tree,
)
from arc_server.backup.taking import unfinished
from arc_server.store.engine import opening, schema
from arc_server.store.engine.ended_journal import (
    JOURNAL,
    EndedJournal,
    EndedRecord,
    end_again,
    read_journal,
)
from arc_server.store.engine.lock import DirectoryLock
from arc_server.store.engine.refusals import StoreLocked, StoreRefused
from arc_server.store.engine.rows import micros

JUMP: Final = 1_000_000_000
"""Numbers that are left out: more than were given out between a backup and its restore."""
EVENT_JUMP: Final = 1_000_000
"""Places of events that are left out, for each command that has not ended."""


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """A backup that was restored."""

    manifest: BackupManifest
    damaged: Sequence[str]
    """Bodies that were damaged when the backup was taken, a line each. All else is as it was."""


def restore_backup(backup: Path, data_dir: Path, former: Path | None) -> Restored:
    """Restore a backup to a data directory that is not there yet, or empty.

    `former` is the data directory from which the backup was taken, or what is left of it, or its
    journal alone, which says what has ended since. Raises BackupError; nothing is left then.
    """
    _check_not_live(data_dir)
    ended_since = [] if former is None else _former_journal(former)
    manifest = read_manifest(backup)
    if manifest.schema > schema.newest():
        raise BackupError(
            f"{backup}: its schema is {manifest.schema}, written by release {manifest.release};"
            f" this release knows schema {schema.newest()}: restore it with {manifest.release}"
        )
    try:
        with unfinished(data_dir) as place:
            check_files(backup, manifest)
            for file in manifest.files:
                if copy_file(backup / file.path, place, file.path) != file:
                    raise BackupError(f"{backup / file.path}: changed while it was read")
            (place / BLOBS).mkdir(mode=0o700, exist_ok=True)
            lines = read_journal(place / JOURNAL) + ended_since
            turn_epoch(place / DATABASE, lines, manifest.taken_at)
            with read_database(place / DATABASE) as database:
                for problem in structure_problems(database, is_deep=True):
                    raise BackupError(f"{backup}: {problem}")
                damaged = list(damaged_bodies(database))
            EndedJournal(place / JOURNAL).add(lines)
            _give_to_owner(place, data_dir)
            sync_tree(place)
            place.rename(data_dir)
            sync_directory(data_dir.absolute().parent)
    except OSError as error:
        raise BackupError(f"{error.filename or data_dir}: {error.strerror}") from None
    except (sqlite3.Error, StoreRefused) as error:
        raise BackupError(f"{backup}: the database cannot be used: {error}") from None
    return Restored(manifest=manifest, damaged=damaged)


def turn_epoch(path: Path, lines: Iterable[EndedRecord], backed_up_at: datetime) -> str:
    """Begin a new epoch in a database that no process has open; return it.

    What deployments use is counted anew.

    Raises sqlite3.Error, StoreRefused.
    """
    epoch = secrets.token_hex(4)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        schema.migrate(connection)
        connection.execute("BEGIN IMMEDIATE")
        end_again(connection, lines)
        connection.execute("DELETE FROM usage")
        connection.execute(
            "INSERT INTO usage (deployment_id, live_commands, open_uploads, stored_bytes,"
            " idempotency_keys, agents, dispatched, succeeded, failed, cancelled, expired)"
            f" {RECOUNT}"
        )
        connection.execute("UPDATE numbering SET high = high + ?", (JUMP,))
        connection.execute("UPDATE revocations SET number = number + ?", (JUMP,))
        connection.execute(
            "UPDATE event_streams SET last_place = last_place + ? WHERE command IN"
            " (SELECT seq FROM commands WHERE completed_at IS NULL)",
            (EVENT_JUMP,),
        )
        connection.execute(
            "INSERT INTO epochs (epoch, numbers_from, backed_up_at)"
            " SELECT ?, high, ? FROM numbering",
            (epoch, micros(backed_up_at)),
        )
        connection.execute("COMMIT")
    return epoch


def begin_epoch(data_dir: Path, former: Path | None, taken_at: datetime) -> str:
    """Begin a new epoch in a data directory that was put back by other means, such as Litestream.

    `former` is what it is to `restore_backup`. Raises BackupError.
    """
    path = data_dir / DATABASE
    if not path.exists():
        raise BackupError(f"{path}: no database there")
    ended_since = [] if former is None else _former_journal(former)
    try:
        lock = DirectoryLock.take(opening.lock_path(path))
    except StoreLocked as error:
        raise BackupError(f"{error}; stop it first") from None
    try:
        lines = read_journal(data_dir / JOURNAL) + ended_since
        with opening.refusing(path):
            opening.inspect(path)
            epoch = turn_epoch(path, lines, taken_at)
        EndedJournal(data_dir / JOURNAL).add(lines)
    except StoreRefused as error:
        raise BackupError(str(error)) from None
    except OSError as error:
        raise BackupError(f"{error.filename or path}: {error.strerror}") from None
    finally:
        lock.release()
    return epoch


def _former_journal(former: Path) -> list[EndedRecord]:
    """Return what has ended by the journal of a former data directory. Raises BackupError.

    Where neither a journal nor a database is, no server was: the path is wrong, and a restore
    without the journal would bring revoked tokens back. A database without a journal is one in
    which nothing has ended.
    """
    try:
        journal = former / JOURNAL if former.is_dir() else former
        lines = read_journal(journal)
        if not lines and journal.is_file() and journal.stat().st_size:
            raise BackupError(f"--former {former}: {journal.name} is no journal of a server")
        if not journal.exists() and not (former / DATABASE).exists():
            reason = f"neither {JOURNAL} nor {DATABASE} is there; no server had its data in it"
            raise BackupError(f"--former {former}: {reason}")
    except OSError as error:
        raise BackupError(f"--former {error.filename or former}: {error.strerror}") from None
    return lines


def _check_not_live(data_dir: Path) -> None:
    """Raise BackupError if a process uses the directory, before it is said to be not empty."""
    lock = opening.lock_path(data_dir / DATABASE)
    if not lock.exists():
        return
    try:
        DirectoryLock.take(lock).release()
    except StoreLocked as error:
        raise BackupError(f"{error}; restore into an empty directory") from None
    except OSError as error:
        raise BackupError(f"{lock}: {error.strerror}") from None


def _give_to_owner(place: Path, data_dir: Path) -> None:
    """Give all files to the owner of the data directory, or of the one above, if root restores.

    Raises OSError.
    """
    owner = (data_dir if data_dir.exists() else data_dir.absolute().parent).stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        give(place, owner.st_uid, owner.st_gid)
