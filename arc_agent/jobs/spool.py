"""The spool keeps finished responses on disk until the server has them.

A database of its own (spool_database.py), with large bodies as files beside it. A response that
`put` has returned for survives a power cut. It leaves the spool when the server takes it or refuses
it for good.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from arc_agent.config.sections import SpoolSection
from arc_agent.host.data_dir import DataDir, sync_directory
from arc_agent.host.disk_thread import DiskThread
from arc_agent.jobs.job import ReplyTo
from arc_agent.jobs.result_files import StoredBody
from arc_agent.jobs.spool_database import Operation, SpoolDatabase
from arc_agent.jobs.spool_rows import (
    COLUMNS,
    Entry,
    burying,
    encoded,
    entry_of,
    executing,
    inserting,
    keeping,
    reading_messages,
    removing,
)

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_CACHED_BYTES: Final = 16 * 1024
_CACHED: Final = 64
"""Small messages that stay in memory as well, mostly to be delivered at once: a MiB at most."""


class _Waiting:
    """A response that waits, as far as memory knows it."""

    __slots__ = ("entry", "is_durable", "is_leaving", "message")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.message: bytes | None = None
        """Kept while it is small and few are, and as long as the disk refuses it."""
        self.is_durable = True
        self.is_leaving = False
        """True once it is delivered or buried: its removal is on its way to the disk."""


class Spool:
    """The spool, open. Lives in the main loop; the disk thread writes for it."""

    def __init__(
        self, data_dir: DataDir, settings: SpoolSection, disk: DiskThread, database: SpoolDatabase
    ) -> None:
        """Use `open`."""
        self._data_dir = data_dir
        self._settings = settings
        self._disk = disk
        self._database = database
        self._waiting: dict[int, _Waiting] = {}
        """In the order of `seq`."""
        self._seq_of: dict[str, int] = {}
        """By command, the response that a new lease of the command would deliver."""
        self._used = 0
        self._cached = 0
        self._volatile = 0
        """Entries that the disk has refused: they are in memory only."""
        self._next_seq = 1
        self._on_entry: list[Callable[[Entry], None]] = []
        self._on_failure: list[Callable[[], None]] = []

    @classmethod
    async def open(cls, data_dir: DataDir, settings: SpoolSection, disk: DiskThread) -> Spool:
        """Open or make the spool, and clear bodies that nothing refers to. Raises SpoolError."""
        failed: list[Callable[[], None]] = []
        database = await disk.call(
            lambda: SpoolDatabase(
                data_dir.path / "spool.db", lambda _: disk.in_loop(lambda: [f() for f in failed])
            )
        )
        spool = cls(data_dir, settings, disk, database)
        failed.append(spool._failed)
        try:
            await spool._load()
        except BaseException:
            await spool.close()
            raise
        return spool

    async def close(self) -> None:
        """Write what waits and close the database."""
        await self._disk.call(self._database.close)

    def configure(self, settings: SpoolSection) -> None:
        """Take other limits."""
        self._settings = settings

    def on_entry(self, listener: Callable[[Entry], None]) -> None:
        """Call `listener` when a response comes, or is to be delivered under another lease."""
        self._on_entry.append(listener)

    def on_failure(self, listener: Callable[[], None]) -> None:
        """Call `listener` when the spool cannot be trusted any more."""
        self._on_failure.append(listener)

    @property
    def failure(self) -> str | None:
        """Return why the spool cannot be trusted any more (an I/O error, no full disk), or None."""
        return self._database.failure

    @property
    def data_dir(self) -> DataDir:
        """Return the directory of the spool."""
        return self._data_dir

    def entries(self) -> list[Entry]:
        """Return the responses that wait, in order."""
        return [waiting.entry for waiting in self._waiting.values()]

    def get(self, seq: int) -> Entry | None:
        """Return an entry as it stands now, None if it has left."""
        waiting = self._waiting.get(seq)
        return None if waiting is None else waiting.entry

    def of_command(self, command_id: str) -> Entry | None:
        """Return the response of a command that waits here to be delivered, or None."""
        waiting = self._waiting.get(self._seq_of.get(command_id, 0))
        return None if waiting is None or waiting.is_leaving else waiting.entry

    def __len__(self) -> int:
        """Return how many responses wait."""
        return len(self._waiting)

    @property
    def used_bytes(self) -> int:
        """Return the bytes that all responses take, about."""
        return self._used

    async def oldest_at(self) -> float | None:
        """Return when the oldest was finished, as POSIX time; None when the disk holds none."""
        ((at,),) = await self.select("SELECT min(queued_at) FROM responses")
        return at

    def has_room(self) -> bool:
        """Return True if the spool's and the disk's limits allow another result."""
        return self.lack() is None

    def lack(self, *, spare: float = 0.0) -> str | None:
        """Return why there is no room for another result, or None.

        `spare` asks for more room than is needed, as a share of it.
        """
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
        """Write the responses that the disk has refused, oldest first, until it refuses again."""
        if not self._volatile:
            return
        for waiting in [each for each in self._waiting.values() if not each.is_durable]:
            entry = waiting.entry
            if waiting.is_leaving or entry.seq not in self._waiting:
                continue
            try:
                await self.run(inserting(entry, waiting.message))
                if waiting.is_leaving or waiting.entry is not entry:  # it has changed meanwhile
                    await self.run(removing([entry]))
                    continue
            except sqlite3.Error:
                return
            self._settle(waiting)
            log.info("spool.durable_again", command_id=entry.to.command_id)

    async def put(
        self, to: ReplyTo, *, message: bytes | None = None, body: StoredBody | None = None
    ) -> Entry:
        """Store a response, durably unless the disk refuses.

        A refused response is kept in memory and delivered from there, and an error is logged. A
        caller that is cancelled leaves a response that is stored and delivered all the same.
        """
        entry = Entry(seq=self._next_seq, to=to, body=body, message_bytes=len(message or b""))
        self._next_seq += 1
        storing = self._disk.submit(self._database, inserting(entry, message))
        stored: asyncio.Future[None] = storing.get_loop().create_future()
        storing.add_done_callback(partial(self._stored, entry, message, stored))
        await stored
        return entry

    def _stored(
        self,
        entry: Entry,
        message: bytes | None,
        stored: asyncio.Future[None],
        storing: asyncio.Future[None],
    ) -> None:
        """Take in a response that is on disk, or that the disk has refused; and end `stored`."""
        if not stored.done():
            stored.set_result(None)
        waiting = _Waiting(entry)
        error = storing.exception()
        if error is not None:
            waiting.is_durable = False
            waiting.message = message
            self._volatile += 1
            log.error("spool.not_durable", command_id=entry.to.command_id, reason=str(error))
        elif message is not None and len(message) <= _CACHED_BYTES and self._cached < _CACHED:
            waiting.message = message
            self._cached += 1
        self._keep(waiting)
        self._announce(entry)

    async def messages(self, entries: Sequence[Entry]) -> list[bytes | None]:
        """Return the stored messages of entries; None for a body that is to be uploaded."""
        found = {entry.seq: self._in_memory(entry) for entry in entries}
        missing = [seq for seq, message in found.items() if message is None]
        if missing:
            found.update(await self.run(reading_messages(missing)))
        return [found[entry.seq] for entry in entries]

    def body_path(self, entry: Entry) -> Path:
        """Return the path of an entry's body."""
        return self._data_dir.bodies / (entry.body.name if entry.body is not None else "")

    async def mark_uploaded(self, entry: Entry, is_uploaded: bool = True) -> Entry:
        """Record that the body is in its store, or is not there after all."""
        changed = msgspec.structs.replace(entry, is_uploaded=is_uploaded)
        await self._change(
            changed,
            executing(
                "UPDATE responses SET uploaded = ? WHERE seq = ?", int(is_uploaded), entry.seq
            ),
        )
        return changed

    async def rebind(self, entry: Entry, to: ReplyTo) -> Entry:
        """Deliver a response under another lease: the server has leased its command here again."""
        changed = msgspec.structs.replace(entry, to=to, is_uploaded=False)
        await self._change(
            changed,
            executing(
                "UPDATE responses SET lease_id = ?, attempt = ?, submit_url = ?, upload = ?,"
                " uploaded = 0 WHERE seq = ?",
                to.lease_id,
                to.attempt,
                to.submit_url,
                encoded(to.upload),
                entry.seq,
            ),
        )
        self._announce(changed)
        return changed

    async def remove(
        self, *entries: Entry, is_taken: bool = True, may_linger: bool = False
    ) -> None:
        """Remove responses that are of no more use. They count as waiting until they are gone.

        The run journal remembers a command whose response the server has not taken: it may come
        again. With `may_linger` the removal shares its fsync with the next write. Until then a
        crash leaves the response, which is delivered again; the server knows it by then.
        """
        await self._leave(entries, removing if is_taken else keeping, may_linger)

    async def bury(self, entry: Entry, reason: str) -> None:
        """Remove a response that the server will never take, and remember why it was refused."""

        await self._leave([entry], burying(reason), may_linger=False)

    async def run(self, operation: Operation, *, may_linger: bool = False) -> Any:
        """Run an operation in the next transaction; return its result once it is durable.

        Raises sqlite3.Error.
        """
        return await self._disk.write(self._database, operation, may_linger=may_linger)

    def run_blocking(self, operation: Operation) -> Any:
        """Run an operation and block until it is durable. From any thread. Raises sqlite3.Error."""
        return self._disk.write_blocking(self._database, operation)

    async def select(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query. Raises sqlite3.Error."""
        return await self.run(lambda db: db.execute(sql, values).fetchall())

    async def dead(self) -> list[tuple[str, str]]:
        """Return command id and reason of what was refused for good, newest first."""
        rows = await self.select("SELECT command_id, reason FROM dead ORDER BY seq DESC")
        return [(row[0], row[1]) for row in rows]

    def _in_memory(self, entry: Entry) -> bytes | None:
        """Return the message of an entry if memory has it."""
        waiting = self._waiting.get(entry.seq)
        return None if waiting is None else waiting.message

    def _keep(self, waiting: _Waiting) -> None:
        """Take a new response in."""
        entry = waiting.entry
        self._waiting[entry.seq] = waiting
        self._seq_of[entry.to.command_id] = entry.seq
        self._used += entry.size

    def _settle(self, waiting: _Waiting) -> None:
        """Count a response no longer as in memory only: it is on disk, or gone."""
        waiting.is_durable = True
        self._volatile -= 1
        waiting.message = None

    async def _change(self, entry: Entry, operation: Operation) -> None:
        """Replace an entry. If the disk refuses, memory is right until the next restart."""
        waiting = self._waiting.get(entry.seq)
        if waiting is not None:
            waiting.entry = entry
        try:
            if waiting is None or waiting.is_durable:
                await self.run(operation)
        except sqlite3.Error as error:
            log.error("spool.not_durable", command_id=entry.to.command_id, reason=str(error))

    async def _leave(
        self,
        entries: Sequence[Entry],
        operation: Callable[[Sequence[Entry]], Operation],
        may_linger: bool,
    ) -> None:
        """Take entries off the disk, then out of memory."""
        leaving = [self._waiting[each.seq] for each in entries if each.seq in self._waiting]
        for waiting in leaving:
            waiting.is_leaving = True
        durable = [each.entry for each in leaving if each.is_durable]
        try:
            if durable:
                await self.run(operation(durable), may_linger=may_linger)
        except sqlite3.Error as error:
            # They are delivered again after a restart, and the server knows them then.
            ids = [each.to.command_id for each in entries]
            log.error("spool.not_removed", command_ids=ids, reason=str(error))
        else:
            await self._unlink([each.entry for each in leaving])
        finally:
            for waiting in leaving:
                self._forget(waiting)

    def _forget(self, waiting: _Waiting) -> None:
        """Let go of an entry that has left."""
        entry = waiting.entry
        if self._waiting.pop(entry.seq, None) is None:
            return
        self._used -= entry.size
        if self._seq_of.get(entry.to.command_id) == entry.seq:
            del self._seq_of[entry.to.command_id]
        if not waiting.is_durable:
            self._settle(waiting)
        elif waiting.message is not None:
            self._cached -= 1

    async def _load(self) -> None:
        """Read what waits, and clear bodies that belong to nothing."""
        rows = await self.select(f"SELECT {COLUMNS} FROM responses ORDER BY seq")  # noqa: S608
        used = await self.select("SELECT seq FROM sqlite_sequence WHERE name = 'responses'")
        self._next_seq = 1 + next((row[0] for row in used), 0)  # none is ever used again
        for entry in map(entry_of, rows):
            self._keep(_Waiting(entry))
            if entry.body is not None and not self.body_path(entry).is_file():
                log.error("spool.body_missing", command_id=entry.to.command_id)
                await self.bury(entry, "the body is gone from the disk")
        await self._disk.call(self._clear_bodies)

    def _clear_bodies(self) -> None:
        """Remove bodies whose process died before it could refer to them."""
        known = {entry.body.name for entry in self.entries() if entry.body is not None}
        for path in self._data_dir.bodies.iterdir():
            if path.name not in known:
                path.unlink(missing_ok=True)
        sync_directory(self._data_dir.bodies)

    async def _unlink(self, entries: Iterable[Entry]) -> None:
        """Remove the bodies' files. A crash before it leaves files that the next start clears."""
        paths = [self.body_path(entry) for entry in entries if entry.body is not None]
        if paths:
            await self._disk.call(lambda: [path.unlink(missing_ok=True) for path in paths])

    def _announce(self, entry: Entry) -> None:
        """Call the listeners of entries."""
        for listener in self._on_entry:
            listener(entry)

    def _failed(self) -> None:
        """Call the listeners of a failure."""
        for listener in self._on_failure:
            listener()
