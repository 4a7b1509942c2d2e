"""A row of the spool: a finished response as the database keeps it, and the operations on it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from arc_agent.jobs.job import ReplyTo
from arc_agent.jobs.result_files import StoredBody
from arc_agent.jobs.spool_database import Operation
from arc_protocol.messages.bodies import PresignedRequest

DEAD_KEPT: Final = 100
"""Responses refused for good that are remembered, without their bodies."""
COLUMNS: Final = (
    "seq, command_id, lease_id, command, attempt, submit_url, upload,"
    " length(coalesce(message, x'')), body, body_bytes, body_sha256, uploaded"
)
"""The columns that `entry_of` reads."""

_INSERT: Final = (
    "INSERT INTO responses (seq, command_id, lease_id, command, attempt, submit_url, upload,"
    " message, body, body_bytes, body_sha256, uploaded, queued_at)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_KEEP_RUN: Final = "UPDATE runs SET state = 'kept' WHERE command_id = ?"
_DELETE: Final = "DELETE FROM responses WHERE seq = ?"
_BURY: Final = (
    "INSERT OR REPLACE INTO dead"
    " (seq, command_id, lease_id, command, attempt, reason, queued_at, died_at)"
    " SELECT seq, command_id, lease_id, command, attempt, ?, queued_at, ?"
    " FROM responses WHERE seq = ?"
)
_FORGET_DEAD: Final = (
    "DELETE FROM dead WHERE seq NOT IN (SELECT seq FROM dead ORDER BY seq DESC LIMIT ?)"
)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A finished response. Either its message is stored with it, or `body` is to be uploaded."""

    seq: int
    """The number of its row, and its place in the order."""
    to: ReplyTo
    body: StoredBody | None
    message_bytes: int
    is_uploaded: bool = False

    @property
    def size(self) -> int:
        """Return the bytes that a response takes on disk, about."""
        return self.message_bytes + (self.body.size if self.body is not None else 0)


def entry_of(row: tuple[Any, ...]) -> Entry:
    """Return the entry of a row, as `_load` reads it."""
    seq, command_id, lease_id, command, attempt, submit_url, upload, message_bytes = row[:8]
    name, size, sha256, uploaded = row[8:]
    return Entry(
        seq=seq,
        to=ReplyTo(
            command_id=command_id,
            lease_id=lease_id,
            command=command,
            attempt=attempt,
            submit_url=submit_url,
            upload=msgspec.json.decode(upload, type=PresignedRequest) if upload else None,
        ),
        message_bytes=message_bytes,
        body=StoredBody(name, size, sha256) if name else None,
        is_uploaded=bool(uploaded),
    )


def inserting(entry: Entry, message: bytes | None) -> Operation:
    """Return the operation that writes a new entry."""
    to, body = entry.to, entry.body
    values = (
        entry.seq,
        to.command_id,
        to.lease_id,
        to.command,
        to.attempt,
        to.submit_url,
        encoded(to.upload) if body is not None else None,
        message,
        body.name if body is not None else None,
        body.size if body is not None else 0,
        body.sha256 if body is not None else None,
        int(entry.is_uploaded),
        time.time(),
    )
    return executing(_INSERT, *values)


def executing(sql: str, *values: Any) -> Operation:
    """Return the operation of one statement."""

    def execute(db: sqlite3.Connection) -> None:
        db.execute(sql, values)

    return execute


def removing(entries: Sequence[Entry]) -> Operation:
    """Return the operation that removes entries that the server has taken."""

    def remove(db: sqlite3.Connection) -> None:
        db.executemany(_DELETE, [(entry.seq,) for entry in entries])

    return remove


def keeping(entries: Sequence[Entry]) -> Operation:
    """Return the operation that removes entries whose commands the run journal keeps."""

    def remove(db: sqlite3.Connection) -> None:
        db.executemany(_KEEP_RUN, [(entry.to.command_id,) for entry in entries])
        removing(entries)(db)

    return remove


def burying(reason: str) -> Callable[[Sequence[Entry]], Operation]:
    """Return what makes the operation that moves entries to the dead, for a reason."""

    def operation(entries: Sequence[Entry]) -> Operation:
        def bury(db: sqlite3.Connection) -> None:
            now = time.time()
            db.executemany(_BURY, [(reason[:1000], now, entry.seq) for entry in entries])
            db.execute(_FORGET_DEAD, (DEAD_KEPT,))
            keeping(entries)(db)

        return bury

    return operation


def reading_messages(seqs: Sequence[int]) -> Operation:
    """Return the operation that reads messages by their rows."""

    def read(db: sqlite3.Connection) -> dict[int, bytes | None]:
        sql = "SELECT message FROM responses WHERE seq = ?"
        rows = ((seq, db.execute(sql, (seq,)).fetchone()) for seq in seqs)
        return {seq: row[0] if row is not None else None for seq, row in rows}

    return read


def encoded(upload: PresignedRequest | None) -> bytes | None:
    """Return a presigned request as it is stored."""
    return None if upload is None else msgspec.json.encode(upload)
