"""The check of a data directory (`fsck`): database and blobs, and whether they fit together."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from arc_server.app import BLOBS
from arc_server.backup.contents import (
    BLOB_SUFFIXES,
    blob_file,
    blobs_of,
    counts_of,
    problems_of,
    read_database,
    snapshot_file,
    structure_problems,
    usage_problems,
)
from arc_server.backup.manifest import BackupError, digest_of
from arc_server.blobs.collection_hold import hold_collection
from arc_server.ports.store import Store

YOUNG_SECONDS: Final = 24 * 3600.0
"""A blob that no command names yet may be a body on its way; an older one is an orphan."""


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """The findings of a check."""

    commands: int
    blobs: int
    problems: list[str]
    """Damage: something is lost."""
    orphans: list[str]
    """Blobs that no command names; harmless, and the collection removes them."""


async def check_data(store: Store, data_dir: Path, *, is_deep: bool) -> Findings:
    """Check a data directory, also while its server works. Raises BackupError."""
    blobs = data_dir / BLOBS
    try:
        with hold_collection(blobs):
            with (
                snapshot_file(await store.snapshot()) as snapshot,
                read_database(snapshot) as database,
            ):
                problems = list(problems_of(database, is_deep=is_deep))
                named = {blob.path: blob for blob in blobs_of(database)}
                commands = counts_of(database)["commands"]
            for blob in named.values():
                file = blob_file(blobs, blob.path)
                if blob.is_awaited:
                    continue
                if file is None:
                    problems.append(f"blob {blob.path}: is missing")
                elif (size := file.stat().st_size) != blob.size:
                    problems.append(f"blob {blob.path}: {size} bytes of {blob.size}")
                elif is_deep:
                    problems += _unreadable(blob.path, file)
            orphans = [path for path in _old_blobs(blobs) if path not in named]
    except OSError as error:
        raise BackupError(f"{error.filename or data_dir}: {error.strerror}") from None
    except sqlite3.Error as error:
        raise BackupError(f"{data_dir}: the database cannot be read: {error}") from None
    return Findings(commands=commands, blobs=len(named), problems=problems, orphans=orphans)


async def repair_usage(store: Store, data_dir: Path) -> list[str]:
    """Count anew what deployments use where the counts are wrong; return a line for each.

    Leaves a damaged database alone. Raises BackupError.
    """
    try:
        with (
            snapshot_file(await store.snapshot()) as snapshot,
            read_database(snapshot) as database,
        ):
            if list(structure_problems(database, is_deep=False)):
                return []
            wrong = dict(usage_problems(database))
    except OSError as error:
        raise BackupError(f"{error.filename or data_dir}: {error.strerror}") from None
    except sqlite3.Error as error:
        raise BackupError(f"{data_dir}: the database cannot be read: {error}") from None
    for deployment_id in wrong:
        await store.recount_usage(deployment_id)
    return list(wrong.values())


def _unreadable(path: str, file: Path) -> Iterator[str]:
    try:
        digest_of(file)
    except OSError as error:
        yield f"blob {path}: cannot be read: {error.strerror}"


def _old_blobs(blobs: Path) -> Iterator[str]:
    """Yield the paths of blobs that were written a while ago."""
    for file in blobs.rglob("*"):
        if file.suffix not in BLOB_SUFFIXES or not file.is_file():
            continue
        if time.time() - file.stat().st_mtime > YOUNG_SECONDS:
            yield str(file.relative_to(blobs).with_suffix(""))
