"""Snapshots: the whole database as it stands at one moment, in a file of its own.

The writer goes on meanwhile. Copying page by page from another connection would begin again with
each commit: under load it never ended.
"""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from arc_runtime.directories import sync_directory

_PREFIX: Final = "snapshot-"


def write_snapshot(path: Path) -> Path:
    """Write a snapshot beside a database, durably; the caller removes it. Blocks.

    Raises OSError (ENOSPC if there is no room), sqlite3.Error; nothing is left then.
    """
    target = path.with_name(f"{_PREFIX}{secrets.token_hex(8)}.db")
    uri = f"{path.absolute().as_uri()}?mode=ro"  # it cannot checkpoint
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            connection.execute("VACUUM INTO ?", (str(target),))
        handle = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        sync_directory(target.parent)
    except BaseException as error:
        with suppress(FileNotFoundError):
            target.unlink()
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorname == "SQLITE_FULL":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from None
        raise
    return target


def remove_snapshots(directory: Path) -> None:
    """Remove snapshots that dead processes have left. Raises OSError."""
    for left in directory.glob(f"{_PREFIX}*.db*"):
        left.unlink(missing_ok=True)
