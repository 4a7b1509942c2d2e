"""SQLite's errors, by what they mean for the operation, for its batch and for the process."""

from __future__ import annotations

import errno
import sqlite3
from typing import Final

_PRIMARY: Final = 0xFF
"""The low byte of an extended result code."""
_OF_THE_BATCH: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    }
)
"""The fault is below the operation: the others of its batch would fare no better."""
_FAILED_FSYNC: Final = frozenset({sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC})
FAILED: Final = "the database has failed, and the server stops"
"""The message for callers after an error that leaves doubt."""
_UNDONE_BY_COMMIT: Final = _OF_THE_BATCH - {sqlite3.SQLITE_IOERR} | {sqlite3.SQLITE_CONSTRAINT}
"""A COMMIT that fails with one of these has written nothing that counts: roll it back."""


def code_of(error: BaseException) -> int:
    """Return the extended result code, 0 when there is none."""
    code = getattr(error, "sqlite_errorcode", None)
    return code if isinstance(code, int) else 0


def name_of(error: BaseException) -> str:
    """Return a line such as `SQLITE_FULL: database or disk is full`."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return f"{name}: {error}"


def is_of_the_batch(error: BaseException) -> bool:
    """Return True if an error of a statement spoils the transaction that it happened in."""
    return isinstance(error, OSError) or code_of(error) & _PRIMARY in _OF_THE_BATCH


def is_failed_fsync(error: BaseException) -> bool:
    """Return True if an fsync failed, so that the last writes may not be on the disk."""
    return code_of(error) in _FAILED_FSYNC


def leaves_doubt(error: BaseException) -> bool:
    """Return True if, after this error of a COMMIT, it is unknown what is on the disk.

    Such a COMMIT is never tried again.
    """
    return code_of(error) & _PRIMARY not in _UNDONE_BY_COMMIT


def is_damage(error: BaseException) -> bool:
    """Return True if the file is no database, or a damaged one."""
    return code_of(error) & _PRIMARY in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def reason(error: BaseException) -> str:
    """Return the sentence for callers; the log has the cause."""
    primary = code_of(error) & _PRIMARY
    if primary == sqlite3.SQLITE_FULL or getattr(error, "errno", None) == errno.ENOSPC:
        return "the disk of the database is full; nothing was changed"
    if is_damage(error):
        return "the database is damaged; the server's log says where"
    if primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return "the disk of the database fails"
    return "the database cannot do this now"
