"""The journal of what has ended for good: tokens and credentials, and uses of enrolment tokens.

A restore turns the database back in time, and must not bring these back to life. Lines are only
ever added to the file, each durable before the request is answered. At its opening a database adds
what it knows and the journal does not: a process may have died between commit and line.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from arc_runtime.directories import sync_directory

JOURNAL: Final = "ended.jsonl"
"""Its name in the data directory."""


class EndedRecord(msgspec.Struct, frozen=True, omit_defaults=True, array_like=False):
    """A line of the journal."""

    kind: str
    """token, enrol-token or credential: it was revoked. enrolled: a credential was made."""
    id: str
    at: int
    """Microseconds since 1970."""
    by: str = ""
    """Of a credential that was made: the enrolment token that it used up one use of."""


_TABLES: Final[Mapping[str, tuple[str, str]]] = {
    "token": ("tokens", "token_id"),
    "enrol-token": ("enrol_tokens", "token_id"),
    "credential": ("credentials", "credential_id"),
}
"""By kind, the table of what can be revoked and its column with the id."""


class EndedJournal:
    """The journal of one data directory, in a process that holds its lock."""

    def __init__(self, path: Path) -> None:
        """Read the journal. Raises OSError."""
        self._path = path
        self._turn = threading.Lock()
        self._known = {(line.kind, line.id) for line in read_journal(path)}

    def add(self, lines: Iterable[EndedRecord]) -> None:
        """Add what is not there yet; durable on return. Blocks. Raises OSError."""
        with self._turn:
            self._add([line for line in lines if (line.kind, line.id) not in self._known])

    def _add(self, new: Sequence[EndedRecord]) -> None:
        if not new:
            return
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                os.write(handle, b"\n")  # a process died within its line
            data = b"".join(msgspec.json.encode(line) + b"\n" for line in new)
            while data:
                data = data[os.write(handle, data) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        if not size:  # the file may be new: its name must outlive a power cut too
            sync_directory(self._path.parent)
        self._known.update((line.kind, line.id) for line in new)


def read_journal(path: Path) -> list[EndedRecord]:
    """Return the lines of a journal, none if there is no file. Skip torn ones. Raises OSError."""
    lines: list[EndedRecord] = []
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return lines
    for line in data.splitlines():
        try:
            lines.append(msgspec.json.decode(line, type=EndedRecord))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return lines


def ended_in(connection: sqlite3.Connection) -> list[EndedRecord]:
    """Return all that has ended for good according to a database."""
    ended = [
        EndedRecord(kind, id_, at)
        for kind, (table, column) in _TABLES.items()
        for id_, at in connection.execute(
            f"SELECT {column}, revoked_at FROM {table} WHERE revoked_at IS NOT NULL"  # noqa: S608
        )
    ]
    made = connection.execute("SELECT credential_id, enrolled_at, enrol_token_id FROM credentials")
    return ended + [EndedRecord("enrolled", id_, at, by) for id_, at, by in made]


def end_again(connection: sqlite3.Connection, lines: Iterable[EndedRecord]) -> None:
    """End in a database of an earlier time what a journal names. Raises sqlite3.Error."""
    used: dict[str, set[str]] = {}
    for line in lines:
        if line.kind == "enrolled":
            used.setdefault(line.by, set()).add(line.id)
        elif line.kind in _TABLES:
            table, column = _TABLES[line.kind]
            connection.execute(
                f"UPDATE {table} SET revoked_at = ?"  # noqa: S608
                f" WHERE {column} = ? AND revoked_at IS NULL",
                (line.at, line.id),
            )
    for token_id, made in used.items():
        connection.execute(
            "UPDATE enrol_tokens SET used = min(uses, max(used, ?)) WHERE token_id = ?",
            (len(made), token_id),
        )
