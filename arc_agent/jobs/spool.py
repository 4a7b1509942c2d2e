"""Finished responses on disk until the server has them.

A SQLite file (WAL, synchronous=FULL), large bodies as files beside it. What `put` has returned for
survives a power cut; it leaves when the server has said its last word on it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import aiosqlite
import msgspec
import structlog

from arc_agent.config.sections import SpoolSection
from arc_agent.host.data_dir import DataDir, is_passing, sync_directory
from arc_agent.jobs.result_files import StoredBody
from arc_protocol.messages.bodies import PresignedRequest

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

VERSION: Final = 1
DEAD_KEPT: Final = 100
"""How many responses that were refused for good are remembered, without their bodies."""
_FRESH_BYTES: Final = 16 * 1024
_FRESH_KEPT: Final = 64
"""How many small messages are kept in memory as well: a MiB at most."""
_PASSING: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
"""What rolls back cleanly and may work later. All else is an I/O error."""

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
"""The journal's table (journal.py). It is added to a spool of any age, and an older agent passes it
over, so that an upgrade can be rolled back: the version stays the same."""


class SpoolError(Exception):
    """A spool that cannot be opened; the message is one clear line."""

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass
        """Whether another try may succeed with nobody doing anything here."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One finished response. Either `message` is stored with it, or `body` is to be uploaded."""

    seq: int
    """Its row. Negative: not durable, because the disk did not take it."""
    command_id: str
    lease_id: str
    command: str
    attempt: int
    submit_url: str | None
    """Pre-authorised; None when the envelope had none that may be used."""
    upload: PresignedRequest | None
    """Where the body goes."""
    body: StoredBody | None
    message_bytes: int
    is_uploaded: bool = False

    @property
    def size(self) -> int:
        """What it takes on disk, about."""
        return self.message_bytes + (self.body.size if self.body is not None else 0)


class Spool:
    """The spool, open. Lives in the main loop; its statements run in a thread of their own."""

    def __init__(self, data_dir: DataDir, settings: SpoolSection, db: aiosqlite.Connection) -> None:
        """Use `open`."""
        self._data_dir = data_dir
        self._db = db
        self._settings = settings
        self._entries: dict[int, Entry] = {}
        """In the order in which they came; a change keeps the place."""
        self._used = 0
        self._bodies: set[int] = set()
        self._volatile: dict[int, bytes | None] = {}
        self._fresh: dict[int, bytes] = {}
        self._leaving: set[int] = set()
        self._next_seq = 1
        self._listeners: list[Callable[[], None]] = []
        self.failure: str | None = None
        """Why the spool cannot be trusted any more (an I/O error, no full disk). The agent ends."""

    @classmethod
    async def open(cls, data_dir: DataDir, settings: SpoolSection) -> Spool:
        """Open or make it, and clear bodies that nothing refers to. Raises SpoolError."""
        path = data_dir.path / "spool.db"
        try:
            db = await _connect(path)
        except (sqlite3.Error, OSError) as error:
            code = getattr(error, "sqlite_errorcode", None)
            may_pass = code in _PASSING or (isinstance(error, OSError) and is_passing(error))
            raise SpoolError(
                f"the spool {path} cannot be used: {error}", may_pass=may_pass
            ) from None
        spool = cls(data_dir, settings, db)
        try:
            await spool._load()
        except BaseException:
            await db.close()
            raise
        return spool

    async def close(self) -> None:
        """Close the database."""
        await self._db.close()

    def configure(self, settings: SpoolSection) -> None:
        """Take other limits."""
        self._settings = settings

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` when an entry came or went."""
        self._listeners.append(listener)

    @property
    def data_dir(self) -> DataDir:
        """Where it is."""
        return self._data_dir

    def entries(self) -> Iterator[Entry]:
        """What is to be delivered, in order. Not to be changed meanwhile."""
        return iter(self._entries.values())

    @property
    def has_uploads(self) -> bool:
        """Whether any body is still to be uploaded."""
        return bool(self._bodies)

    def get(self, seq: int) -> Entry | None:
        """One entry as it stands now, None when it has left."""
        return self._entries.get(seq)

    def of_command(self, command_id: str) -> Entry | None:
        """The response of a command, if it waits here."""
        return next(
            (
                entry
                for entry in self._entries.values()
                if entry.command_id == command_id and entry.seq not in self._leaving
            ),
            None,
        )

    def __len__(self) -> int:
        """How many responses wait."""
        return len(self._entries)

    @property
    def used_bytes(self) -> int:
        """What they take, about."""
        return self._used

    async def oldest_at(self) -> float | None:
        """When the first of them was finished, as POSIX time; None when the disk holds none."""
        rows = await self._db.execute_fetchall("SELECT min(queued_at) FROM responses")
        return next((row[0] for row in rows), None)

    def has_room(self) -> bool:
        """Whether another result may be taken on: limits of the spool and of the disk."""
        return self.lack() is None

    def lack(self, *, spare: float = 0.0) -> str | None:
        """What there is not enough of for another result, by so much more than needed; or None."""
        if self.failure is not None:
            return "the spool failed"
        settings = self._settings
        if self._used >= settings.max_bytes * (1 - spare):
            return "spool.max_bytes is reached"
        free_bytes, free_files = self._data_dir.free()
        if free_bytes < settings.min_free_bytes * (1 + spare):
            return "less than spool.min_free_bytes is free"
        if free_files is not None and free_files < settings.min_free_inodes * (1 + spare):
            return "fewer than spool.min_free_inodes are free"
        if self._volatile:
            return "results are in memory only"
        return None

    async def persist(self) -> None:
        """Write what the disk has refused, oldest first, as far as it takes it now."""
        for seq in sorted(self._volatile):
            entry, message = self._entries.get(seq), self._volatile.get(seq)
            if entry is None or seq in self._leaving:
                continue
            try:
                await self._insert(entry, message)
                if self._entries.get(seq) is not entry:  # delivered or changed meanwhile
                    await self._write("DELETE FROM responses WHERE seq = ?", (seq,))
                    continue
            except sqlite3.Error:
                return
            self._volatile.pop(seq, None)
            log.info("spool.durable_again", command_id=entry.command_id)

    async def put(
        self,
        *,
        command_id: str,
        lease_id: str,
        command: str,
        attempt: int,
        submit_url: str | None,
        upload: PresignedRequest | None,
        message: bytes | None,
        body: StoredBody | None,
    ) -> Entry:
        """Take a response in. Durable when it returns, unless the disk refuses: then it is kept in
        memory, which is said in the log, and delivered from there.
        """
        entry = Entry(
            seq=self._next_seq,
            command_id=command_id,
            lease_id=lease_id,
            command=command,
            attempt=attempt,
            submit_url=submit_url,
            upload=upload,
            body=body,
            message_bytes=len(message or b""),
        )
        self._next_seq += 1
        try:
            await self._insert(entry, message)
        except sqlite3.Error as error:
            self._volatile[entry.seq] = message
            log.error("spool.not_durable", command_id=command_id, reason=str(error))
        self._take(entry)
        if message is not None and len(message) <= _FRESH_BYTES and len(self._fresh) < _FRESH_KEPT:
            self._fresh[entry.seq] = message  # mostly it is delivered at once
        self._tell()
        return entry

    async def message(self, entry: Entry) -> bytes | None:
        """The stored message of an entry, None when its body is to be uploaded."""
        kept = self._volatile.get(entry.seq) or self._fresh.get(entry.seq)
        if kept is not None or entry.seq in self._volatile:
            return kept
        rows = await self._db.execute_fetchall(
            "SELECT message FROM responses WHERE seq = ?", (entry.seq,)
        )
        return next((row[0] for row in rows), None)

    def body_path(self, entry: Entry) -> Path:
        """The file of an entry's body."""
        return self._data_dir.bodies / (entry.body.name if entry.body is not None else "")

    async def mark_uploaded(self, entry: Entry, is_uploaded: bool = True) -> Entry:
        """Note that the body is where it belongs, or is not there after all."""
        changed = msgspec.structs.replace(entry, is_uploaded=is_uploaded)
        await self._change(
            changed,
            "UPDATE responses SET uploaded = ? WHERE seq = ?",
            (int(is_uploaded), entry.seq),
        )
        return changed

    async def rebind(
        self,
        entry: Entry,
        *,
        lease_id: str,
        attempt: int,
        submit_url: str | None,
        upload: PresignedRequest | None,
    ) -> Entry:
        """Deliver under another lease: the server has given the command to us again."""
        changed = msgspec.structs.replace(
            entry, lease_id=lease_id, attempt=attempt, submit_url=submit_url, upload=upload,
            is_uploaded=False,
        )  # fmt: skip
        await self._change(
            changed,
            "UPDATE responses SET lease_id = ?, attempt = ?, submit_url = ?, upload = ?,"
            " uploaded = 0 WHERE seq = ?",
            (
                lease_id,
                attempt,
                submit_url,
                msgspec.json.encode(upload) if upload is not None else None,
                entry.seq,
            ),
        )
        return changed

    async def remove(self, entry: Entry, *, is_taken: bool = True) -> None:
        """Delivered, or of no more use. It counts as there until it is gone from the disk.

        Unless the server has taken it, the journal remembers the command: it may come again.
        """
        self._leaving.add(entry.seq)
        try:
            if entry.seq not in self._volatile:
                if not is_taken:
                    await self._write(
                        "UPDATE runs SET state = 'kept' WHERE command_id = ?", (entry.command_id,)
                    )
                await self._write("DELETE FROM responses WHERE seq = ?", (entry.seq,))
        except sqlite3.Error as error:
            # It will be delivered again after a restart, and the server knows it then.
            log.error("spool.not_removed", command_id=entry.command_id, reason=str(error))
        else:
            await self._unlink(entry)
        finally:
            if self._entries.pop(entry.seq, None) is not None:
                self._used -= entry.size
            self._bodies.discard(entry.seq)
            self._volatile.pop(entry.seq, None)
            self._fresh.pop(entry.seq, None)
            self._leaving.discard(entry.seq)
        self._tell()

    async def bury(self, entry: Entry, reason: str) -> None:
        """The server will never take it: remember that, and let go of the body."""
        try:
            await self._write(
                "INSERT OR REPLACE INTO dead"
                " (seq, command_id, lease_id, command, attempt, reason, queued_at, died_at)"
                " SELECT seq, command_id, lease_id, command, attempt, ?, queued_at, ?"
                " FROM responses WHERE seq = ?",
                (reason[:1000], time.time(), entry.seq),
            )
            await self._write(
                "DELETE FROM dead WHERE seq NOT IN"
                " (SELECT seq FROM dead ORDER BY seq DESC LIMIT ?)",
                (DEAD_KEPT,),
            )
        except sqlite3.Error as error:
            log.error("spool.not_buried", command_id=entry.command_id, reason=str(error))
        await self.remove(entry, is_taken=False)

    async def execute(self, sql: str, values: tuple[Any, ...] = ()) -> None:
        """A statement of a table that stands beside the spool's. Durable. Raises sqlite3.Error."""
        await self._write(sql, values)

    async def select(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Rows of such a table. Raises sqlite3.Error."""
        return [tuple(row) for row in await self._db.execute_fetchall(sql, values)]

    @property
    def path(self) -> Path:
        """The database's file."""
        return self._data_dir.path / "spool.db"

    async def dead(self) -> list[tuple[str, str]]:
        """Command id and reason of what was refused for good, newest first."""
        rows = await self._db.execute_fetchall(
            "SELECT command_id, reason FROM dead ORDER BY seq DESC"
        )
        return [(row[0], row[1]) for row in rows]

    def _take(self, entry: Entry) -> None:
        """Keep an entry, new or changed."""
        if entry.seq not in self._entries:
            self._used += entry.size
        self._entries[entry.seq] = entry
        if entry.body is not None and not entry.is_uploaded:
            self._bodies.add(entry.seq)
        else:
            self._bodies.discard(entry.seq)

    async def _change(self, entry: Entry, sql: str, values: tuple[Any, ...]) -> None:
        """Replace an entry. If the disk refuses, memory still knows better than after a restart."""
        if entry.seq in self._entries:
            self._take(entry)
        try:
            if entry.seq not in self._volatile:
                await self._write(sql, values)
        except sqlite3.Error as error:
            log.error("spool.not_durable", command_id=entry.command_id, reason=str(error))
        self._tell()

    async def _insert(self, entry: Entry, message: bytes | None) -> None:
        """Write a new entry. Raises sqlite3.Error."""
        body, upload = entry.body, entry.upload
        await self._write(
            "INSERT INTO responses (seq, command_id, lease_id, command, attempt, submit_url,"
            " upload, message, body, body_bytes, body_sha256, uploaded, queued_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                entry.seq,
                entry.command_id,
                entry.lease_id,
                entry.command,
                entry.attempt,
                entry.submit_url,
                msgspec.json.encode(upload) if upload is not None else None,
                message,
                body.name if body is not None else None,
                body.size if body is not None else 0,
                body.sha256 if body is not None else None,
                int(entry.is_uploaded),
                time.time(),
            ),
        )

    async def _write(self, sql: str, values: tuple[Any, ...]) -> int:
        """One statement, one transaction; the id of a new row. Raises sqlite3.Error."""
        if self.failure is not None:
            raise sqlite3.OperationalError(self.failure)
        try:
            row = await self._db.execute_insert(sql, values)  # one hop to its thread, for any write
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _PASSING:
                # After a failed fsync nothing that this file says can be relied on.
                self.failure = str(error)
                log.critical("spool.failed", reason=str(error))
                self._tell()
            raise
        return int(row[0]) if row is not None else 0

    async def _load(self) -> None:
        """Read what waits, and clear bodies that belong to nothing."""
        async with self._db.execute(
            "SELECT seq, command_id, lease_id, command, attempt, submit_url, upload,"
            " length(coalesce(message, x'')), body, body_bytes, body_sha256, uploaded"
            " FROM responses ORDER BY seq"
        ) as cursor:
            rows = await cursor.fetchall()
        used = await self._db.execute_fetchall(
            "SELECT seq FROM sqlite_sequence WHERE name = 'responses'"
        )
        self._next_seq = 1 + next((row[0] for row in used), 0)  # none is ever used again
        for row in rows:
            entry = Entry(
                seq=row[0],
                command_id=row[1],
                lease_id=row[2],
                command=row[3],
                attempt=row[4],
                submit_url=row[5],
                upload=msgspec.json.decode(row[6], type=PresignedRequest) if row[6] else None,
                message_bytes=row[7],
                body=StoredBody(row[8], row[9], row[10]) if row[8] else None,
                is_uploaded=bool(row[11]),
            )
            if entry.body is not None and not self.body_path(entry).is_file():
                log.error("spool.body_missing", command_id=entry.command_id)
                await self.bury(entry, "the body is gone from the disk")
                continue
            self._take(entry)
        await asyncio.to_thread(self._clear_bodies)

    def _clear_bodies(self) -> None:
        """Remove bodies whose process died before it could refer to them."""
        known = {entry.body.name for entry in self._entries.values() if entry.body is not None}
        for path in self._data_dir.bodies.iterdir():
            if path.name not in known:
                path.unlink(missing_ok=True)
        sync_directory(self._data_dir.bodies)

    async def _unlink(self, entry: Entry) -> None:
        """Remove the body's file. A crash before it leaves a file that the next start clears."""
        if entry.body is not None:
            await asyncio.to_thread(self.body_path(entry).unlink, missing_ok=True)

    def _tell(self) -> None:
        """Something changed."""
        for listener in self._listeners:
            listener()


async def _connect(path: Path) -> aiosqlite.Connection:
    """The database, checked and with its tables. Raises sqlite3.Error, SpoolError."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = await aiosqlite.connect(path, isolation_level=None)
    try:
        await db.execute("PRAGMA journal_mode = WAL")
        await db.execute("PRAGMA synchronous = FULL")
        await _check(db, path)
    except BaseException:
        await db.close()
        raise
    return db


async def _check(db: aiosqlite.Connection, path: Path) -> None:
    """Whether it is whole and ours; makes the tables of a new one. Raises SpoolError."""
    async with db.execute("PRAGMA quick_check(1)") as cursor:
        row = await cursor.fetchone()
    if row is None or row[0] != "ok":
        raise SpoolError(f"the spool {path} is damaged: move it away to start anew")
    async with db.execute("PRAGMA user_version") as cursor:
        row = await cursor.fetchone()
    version = row[0] if row is not None else 0
    if version > VERSION:
        raise SpoolError(f"the spool {path} was made by a newer agent (version {version})")
    if version == 0:
        await db.executescript(_SCHEMA)
    await db.executescript(_RUNS)
