"""The record of used signatures survives restarts, so that no signature is used twice.

A signature belongs to the command that came with it first. The same command may come again (its
lease lapsed or was released), until it has ended here; any other command with it is a replay.
Signatures that are out of date are forgotten, but not how far: when the clock is set back, or
signatures may be older than before, a forgotten signature stays out of date.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from enum import Enum
from pathlib import Path
from threading import Lock
from typing import Final

from arc_agent.host.data_dir import is_passing

FILE_NAME: Final = "nonces.db"
_VERSION: Final = 1
_PASSING: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_CLAIMS_PER_SWEEP: Final = 64

_SCHEMA: Final = """
BEGIN IMMEDIATE;
CREATE TABLE nonces (
  key_id TEXT NOT NULL,
  nonce TEXT NOT NULL,
  command_id TEXT NOT NULL,
  until REAL NOT NULL,
  ended INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (key_id, nonce)
) STRICT, WITHOUT ROWID;
CREATE INDEX nonces_until ON nonces (until);
CREATE TABLE forgotten (id INTEGER PRIMARY KEY CHECK (id = 1), until REAL NOT NULL) STRICT;
INSERT INTO forgotten VALUES (1, 0);
PRAGMA user_version = 1;
COMMIT;
"""


_FLOOR: Final = """
CREATE TABLE IF NOT EXISTS made (
  id INTEGER PRIMARY KEY CHECK (id = 1), before REAL NOT NULL
) STRICT;
INSERT OR IGNORE INTO made VALUES (1, 0);
"""
"""The instant before which signatures may have been forgotten: none made earlier is taken."""


class UsedSignaturesError(Exception):
    """A record that cannot be used; the message is one clear line."""

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass
        """True if another try may succeed without an operator's help."""


class Claim(Enum):
    """The answer to a command that claims its signature."""

    GRANTED = "granted"
    """The signature is this command's."""
    TAKEN = "taken"
    """Another command came with it before."""
    ENDED = "ended"
    """This command came with it before, and has ended."""
    FORGOTTEN = "forgotten"
    """So old that the record may have forgotten it."""


class UsedSignatures:
    """The record, open. Its methods block for the disk; safe from any thread."""

    def __init__(self, directory: Path) -> None:
        """Open or make the file. Raises UsedSignaturesError."""
        self._path = directory / FILE_NAME
        self._lock = Lock()
        self._claims = 0
        try:
            self._db = self._connect()
        except (sqlite3.Error, OSError) as error:
            raise self._error(error) from None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def claim(
        self,
        key_id: str,
        nonce: str,
        command_id: str,
        *,
        made: float,
        until: float,
        now: float,
        max_age: float,
    ) -> Claim:
        """Take a signature for a command, durably. Raises UsedSignaturesError.

        `made` and `until` are when it was made and when it is out of date, as POSIX time. What is
        out of date at `now`, or was made more than `max_age` seconds before it, is forgotten now
        and then. None of these times allows for a skew of clocks.
        """
        with self._lock:
            try:
                claim = self._claim(key_id, nonce, command_id, made, until)
                if claim is Claim.GRANTED:
                    self._claims += 1
                    if self._claims % _CLAIMS_PER_SWEEP == 1:
                        self._forget(now, now - max_age)
            except (sqlite3.Error, OSError) as error:
                raise self._error(error) from None
            return claim

    def end(self, key_id: str, nonce: str) -> None:
        """Record that the command of a signature has ended: it is not run again.

        Raises UsedSignaturesError.
        """
        with self._lock:
            try:
                self._db.execute(
                    "UPDATE nonces SET ended = 1 WHERE key_id = ? AND nonce = ?", (key_id, nonce)
                )
            except (sqlite3.Error, OSError) as error:
                raise self._error(error) from None

    def end_commands(self, command_ids: Sequence[str]) -> None:
        """End commands whose signatures are not at hand, by their ids.

        Raises UsedSignaturesError.
        """
        with self._lock:
            try:
                self._db.execute(
                    "UPDATE nonces SET ended = 1"
                    " WHERE command_id IN (SELECT value FROM json_each(?))",
                    (json.dumps(list(command_ids)),),
                )
            except (sqlite3.Error, OSError) as error:
                raise self._error(error) from None

    @staticmethod
    def is_in(directory: Path) -> bool:
        """Return True if a directory holds a record."""
        return (directory / FILE_NAME).exists()

    def __len__(self) -> int:
        """Return how many signatures are remembered."""
        with self._lock:
            [(count,)] = self._db.execute("SELECT count(*) FROM nonces").fetchall()
        return int(count)

    def _claim(self, key_id: str, nonce: str, command_id: str, made: float, until: float) -> Claim:
        """Take a signature, or return why it cannot be taken. Raises sqlite3.Error."""
        found = self._db.execute(
            "SELECT command_id, ended FROM nonces WHERE key_id = ? AND nonce = ?", (key_id, nonce)
        ).fetchone()
        if found is not None:
            if found[0] != command_id:
                return Claim.TAKEN
            return Claim.ENDED if found[1] else Claim.GRANTED
        [(forgotten, floor)] = self._db.execute(
            "SELECT until, before FROM forgotten, made"
        ).fetchall()
        if until <= forgotten or made < floor:
            return Claim.FORGOTTEN
        self._db.execute(
            "INSERT INTO nonces (key_id, nonce, command_id, until) VALUES (?, ?, ?, ?)",
            (key_id, nonce, command_id, until),
        )
        return Claim.GRANTED

    def _forget(self, now: float, floor: float) -> None:
        """Forget what is out of date, and remember how far that went."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "UPDATE forgotten SET until = max(until, coalesce("
                "(SELECT max(until) FROM nonces WHERE until < ?), 0))",
                (now,),
            )
            self._db.execute("UPDATE made SET before = max(before, ?)", (floor,))
            self._db.execute("DELETE FROM nonces WHERE until < ?", (now,))

    def _connect(self) -> sqlite3.Connection:
        """Open the file, and make its tables when it is new."""
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Apply settings, and make missing tables. Raises UsedSignaturesError."""
        with closing(db.execute("PRAGMA journal_mode = WAL")) as cursor:
            cursor.fetchall()
        db.execute("PRAGMA synchronous = FULL")
        [(version,)] = db.execute("PRAGMA user_version").fetchall()
        if version == 0:
            db.executescript(_SCHEMA)
        elif version != _VERSION:
            raise UsedSignaturesError(f"{self._path} was written by a newer release")
        db.executescript(_FLOOR)

    def _error(self, error: Exception) -> UsedSignaturesError:
        """Return an error of the database or the disk as an error of this record."""
        code = getattr(error, "sqlite_errorcode", None)
        may_pass = code in _PASSING or (isinstance(error, OSError) and is_passing(error))
        return UsedSignaturesError(
            f"the record of used signatures {self._path} cannot be used: {error}",
            may_pass=may_pass,
        )
