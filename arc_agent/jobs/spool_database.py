"""The spool's database: its tables, how it is opened, and how its writes share a transaction.

An SQLite file (WAL, synchronous=FULL) that the disk thread alone uses. All operations that wait
together are one transaction and one fsync. Where that fails, each is tried by itself, so that a
large response on a full disk does not keep a small one, or a removal, from being written.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import structlog

from arc_agent.host.data_dir import is_passing

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

VERSION: Final = 1
_PASSING: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
"""Errors that roll back cleanly, and may be gone at the next try."""
_OURS: Final = (
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_TOOBIG,
)
"""Errors of one statement, not of the file."""

_SCHEMA: Final = """
BEGIN IMMEDIATE;
CREATE TABLE responses (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  command_id TEXT NOT NULL,
  lease_id TEXT NOT NULL,
  command TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  submit_url TEXT,
  upload BLOB,
  message BLOB,
  body TEXT,
  body_bytes INTEGER NOT NULL DEFAULT 0,
  body_sha256 TEXT,
  uploaded INTEGER NOT NULL DEFAULT 0,
  queued_at REAL NOT NULL
) STRICT;
CREATE TABLE dead (
  seq INTEGER PRIMARY KEY,
  command_id TEXT NOT NULL,
  lease_id TEXT NOT NULL,
  command TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  reason TEXT NOT NULL,
  queued_at REAL NOT NULL,
  died_at REAL NOT NULL
) STRICT;
PRAGMA user_version = 1;
COMMIT;
"""
_RUNS: Final = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS runs (
  command_id TEXT PRIMARY KEY,
  lease_id TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  command TEXT NOT NULL,
  state TEXT NOT NULL,
  submit_url TEXT,
  upload BLOB,
  announced BLOB,
  at REAL NOT NULL
) STRICT;
CREATE TRIGGER IF NOT EXISTS runs_answered AFTER INSERT ON responses BEGIN
  UPDATE runs SET state = CASE lease_id WHEN NEW.lease_id THEN 'answered' ELSE 'kept' END
  WHERE command_id = NEW.command_id;
END;
CREATE TRIGGER IF NOT EXISTS runs_taken AFTER DELETE ON responses BEGIN
  DELETE FROM runs WHERE command_id = OLD.command_id AND state = 'answered';
END;
COMMIT;
"""
"""The run journal's table (run_journal.py). It is added to a spool of any age, and an older agent
passes it over, so that an upgrade can be rolled back: the version stays the same."""

Operation = Callable[[sqlite3.Connection], Any]
"""A part of a transaction: it executes statements and returns what its caller gets."""


class SpoolError(Exception):
    """A spool that cannot be opened; the message is one clear line."""

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass
        """True if another try may succeed without an operator's help."""


class SpoolDatabase:
    """The database, open. A writer of the disk thread: use it in that thread only."""

    def __init__(self, path: Path, on_failure: Callable[[str], None]) -> None:
        """Open or make it. `on_failure` is called, in the disk thread, at the first I/O error.

        Raises SpoolError.
        """
        self.failure: str | None = None
        """Why the file cannot be trusted any more: an I/O error, no full disk."""
        self._on_failure = on_failure
        try:
            self.connection = _connect(path)
        except (sqlite3.Error, OSError) as error:
            code = getattr(error, "sqlite_errorcode", None)
            may_pass = code in _PASSING or (isinstance(error, OSError) and is_passing(error))
            raise SpoolError(
                f"the spool {path} cannot be used: {error}", may_pass=may_pass
            ) from None

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def write(self, items: Sequence[Operation]) -> Sequence[Any]:
        """Run operations in one transaction; return a result or an exception for each."""
        if self.failure is None:
            try:
                return self._transaction(items)
            except Exception as error:  # an operation's own: its caller gets it
                if len(items) == 1 or not self._may_go_on(error):
                    self._may_go_on(error)
                    return [error] * len(items)
        return [self._alone(item) for item in items]

    def _alone(self, operation: Operation) -> Any:
        """Run one operation in a transaction of its own; return its result or exception."""
        if self.failure is not None:
            return sqlite3.OperationalError(self.failure)
        try:
            return self._transaction([operation])[0]
        except Exception as error:
            self._may_go_on(error)
            return error

    def _transaction(self, operations: Sequence[Operation]) -> list[Any]:
        """Run operations, all or none. Raises what they raise, and sqlite3.Error."""
        db = self.connection
        db.execute("BEGIN IMMEDIATE")
        try:
            results = [operation(db) for operation in operations]
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return results

    def _may_go_on(self, error: Exception) -> bool:
        """Return False, and give the file up, if it cannot be trusted after this error."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if not isinstance(error, sqlite3.Error) or code in _PASSING or code in _OURS:
            return True
        # After a failed fsync the kernel may have dropped what it could not write.
        if self.failure is None:
            self.failure = str(error)
            log.critical("spool.failed", reason=self.failure)
            self._on_failure(self.failure)
        return False


def _connect(path: Path) -> sqlite3.Connection:
    """Open the file, check it and make its tables. Raises sqlite3.Error, OSError, SpoolError."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        db.execute("PRAGMA synchronous = FULL")
        _check(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _check(db: sqlite3.Connection, path: Path) -> None:
    """Raise SpoolError if the file is damaged or newer than this agent; make missing tables."""
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise SpoolError(f"the spool {path} is damaged: move it away to start anew")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise SpoolError(f"the spool {path} was made by a newer agent (version {version})")
    if version == 0:
        db.executescript(_SCHEMA)
    db.executescript(_RUNS)
