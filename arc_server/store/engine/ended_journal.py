"""The journal of what has ended for good: tokens and credentials, the secrets and keys that newer
ones replaced, and uses of enrolment tokens.

A restore turns the database back in time, and must not bring these back to life. A line about a
secret or a key names its successor too, which goes on after the restore. Lines are added to the
file, each durable before the request is answered. At its opening a database adds what it knows and
the journal does not: a process may have died between commit and line.

A line leaves only if no restore could bring back what it names: a token that has expired besides,
and that the database has forgotten, or a secret or key whose successor has a line.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from arc_runtime import failpoints
from arc_runtime.directories import sync_directory

JOURNAL: Final = "ended.jsonl"
"""The name of the journal in the data directory."""
_OWN: Final = os.O_CLOEXEC | os.O_NOFOLLOW
"""A link in the directory must not lead a command of root's to another file."""


class EndedRecord(msgspec.Struct, frozen=True, omit_defaults=True, array_like=False):
    """A line of the journal."""

    kind: str
    """token, enrol-token or credential: it was revoked. enrolled: a credential was made. secret: a
    token was given a new one. key: a credential first used a new one."""
    id: str
    """Of a new secret its SHA-256, in hex."""
    at: int
    """Microseconds since 1970."""
    by: str = ""
    """Of a credential that was made: the enrolment token that it used up one use of. Of a secret
    the token, of a key the credential."""
    older_end_at: int = 0
    """When the secrets or keys before this one end, in microseconds since 1970."""
    public_key: bytes = b""
    """Of a key."""
    until: int = 0
    """When the token would have expired anyway, in microseconds since 1970; 0: never."""


_TABLES: Final[Mapping[str, tuple[str, str, str]]] = {
    "token": ("tokens", "token_id", "coalesce(expires_at, 0)"),
    "enrol-token": ("enrol_tokens", "token_id", "expires_at"),
    "credential": ("credentials", "credential_id", "0"),
}
"""By kind, the table of what can be revoked, its column with the id, and when it expires."""
_SUCCESSIONS: Final[Mapping[str, Sequence[str]]] = {
    "secret": (
        "UPDATE token_secrets SET ends_at = coalesce(min(ends_at, :older_end_at), :older_end_at)"
        " WHERE token_id = :by AND created_at < :at",
        "INSERT OR IGNORE INTO token_secrets (token_hash, token_id, created_at)"
        " SELECT :hash, t.token_id, :at FROM tokens AS t WHERE t.token_id = :by AND NOT EXISTS"
        " (SELECT 1 FROM token_secrets AS s WHERE s.token_id = :by AND s.created_at > :at)",
    ),
    "key": (
        "UPDATE agent_keys SET ends_at = coalesce(min(ends_at, :older_end_at), :older_end_at)"
        " WHERE credential_id = :by AND made_at < :at AND key_id <> :id",
        "INSERT OR IGNORE INTO agent_keys (key_id, credential_id, public_key, made_at, used_at)"
        " SELECT :id, c.credential_id, :public_key, :at, :at FROM credentials AS c"
        " WHERE c.credential_id = :by AND NOT EXISTS"
        " (SELECT 1 FROM agent_keys AS k WHERE k.credential_id = :by AND k.made_at > :at)",
    ),
}
"""By kind, how a new secret or key takes the place of those before it."""
_NEWER_SECRETS: Final = """
SELECT s.token_hash, s.created_at, s.token_id, coalesce(
    (SELECT max(o.ends_at) FROM token_secrets AS o
     WHERE o.token_id = s.token_id AND o.created_at < s.created_at), s.created_at)
FROM token_secrets AS s JOIN tokens AS t ON t.token_id = s.token_id
WHERE s.created_at > t.created_at ORDER BY s.created_at
"""
_NEWER_KEYS: Final = """
SELECT k.key_id, k.used_at, k.credential_id, coalesce(
    (SELECT max(o.ends_at) FROM agent_keys AS o
     WHERE o.credential_id = k.credential_id AND o.seq < k.seq), k.used_at), k.public_key
FROM agent_keys AS k JOIN credentials AS c ON c.credential_id = k.credential_id
WHERE k.used_at IS NOT NULL AND k.made_at > c.enrolled_at ORDER BY k.seq
"""


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

    def forget(self, before: int) -> None:
        """Drop lines of before then, in microseconds since 1970: of what has expired besides, and
        of secrets and keys that a newer one has replaced. Blocks.

        Call once the database has forgotten them, or they come back. Raises OSError; the journal
        is as it was then.
        """
        with self._turn:
            lines = read_journal(self._path)
            newest = {
                (line.kind, line.by): line
                for line in sorted(lines, key=lambda line: line.at)
                if line.kind in _SUCCESSIONS
            }
            kept = [
                line
                for line in lines
                if not 0 < line.until < before
                and not _is_replaced(line, newest.get((line.kind, line.by)), before)
            ]
            if len(kept) == len(lines):
                return
            successor = self._path.with_name(f"{self._path.name}.new")
            handle = os.open(successor, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _OWN, 0o600)
            with open(handle, "wb") as file:
                file.write(_written(kept))
                file.flush()
                os.fsync(file.fileno())
            failpoints.hit("journal.before_rename")
            successor.replace(self._path)
            sync_directory(self._path.parent)
            self._known = {(line.kind, line.id) for line in kept}

    def _add(self, new: Sequence[EndedRecord]) -> None:
        if not new:
            return
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _OWN, 0o600)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                os.write(handle, b"\n")  # a process died within its line
            data = _written(new)
            while data:
                data = data[os.write(handle, data) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        if not size:  # the file may be new: its name must outlive a power cut too
            sync_directory(self._path.parent)
        self._known.update((line.kind, line.id) for line in new)


def _is_replaced(line: EndedRecord, newest: EndedRecord | None, before: int) -> bool:
    return newest is not None and line.at < newest.at and newest.older_end_at < before


def _written(lines: Iterable[EndedRecord]) -> bytes:
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


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
        EndedRecord(kind, id_, at, until=until)
        for kind, (table, column, expiry) in _TABLES.items()
        for id_, at, until in connection.execute(
            f"SELECT {column}, revoked_at, {expiry} FROM {table}"  # noqa: S608
            " WHERE revoked_at IS NOT NULL"
        )
    ]
    # A credential outlives its enrolment token; what that was used for is of no interest then.
    made = connection.execute(
        "SELECT c.credential_id, c.enrolled_at, c.enrol_token_id, e.expires_at"
        " FROM credentials AS c JOIN enrol_tokens AS e ON e.token_id = c.enrol_token_id"
    )
    ended += [EndedRecord("enrolled", id_, at, by, until=until) for id_, at, by, until in made]
    secrets = connection.execute(_NEWER_SECRETS)
    ended += [EndedRecord("secret", id_.hex(), at, by, end) for id_, at, by, end in secrets]
    keys = connection.execute(_NEWER_KEYS)
    return ended + [EndedRecord("key", id_, at, by, end, data) for id_, at, by, end, data in keys]


def expiry_of(connection: sqlite3.Connection, kind: str, id_: str) -> int:
    """Return when a token of the database expires, 0 if it does not."""
    table, column, expiry = _TABLES[kind]
    row = connection.execute(
        f"SELECT {expiry} FROM {table} WHERE {column} = ?",  # noqa: S608
        (id_,),
    ).fetchone()
    return 0 if row is None else row[0]


def end_again(connection: sqlite3.Connection, lines: Iterable[EndedRecord]) -> None:
    """End in a database of an earlier time what a journal names. Raises sqlite3.Error."""
    used: dict[str, set[str]] = {}
    for line in lines:
        if line.kind == "enrolled":
            used.setdefault(line.by, set()).add(line.id)
        elif line.kind in _SUCCESSIONS:
            named = msgspec.structs.asdict(line)
            if line.kind == "secret":
                named["hash"] = bytes.fromhex(line.id)
            for statement in _SUCCESSIONS[line.kind]:
                connection.execute(statement, named)
        elif line.kind in _TABLES:
            table, column, _ = _TABLES[line.kind]
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
