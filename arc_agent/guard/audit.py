"""The audit log: a line for every decision about a command, chained so that changes show.

Each line is a JSON object that ends on `prev`, the SHA-256 of the line before it; the files
`audit-00000001.jsonl`, … continue one another, and the highest number is the current one. A thread
of its own writes: what waits together is written and fsynced together. No params, no results and
no secrets are in it, only their sizes and digests.
"""

from __future__ import annotations

import asyncio
import os
import queue
import re
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import structlog

from arc_agent.config.sections import AuditSection
from arc_agent.host.data_dir import is_passing, sync_directory
from arc_agent.host.threads import call_in, in_thread

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

GENESIS: Final = "0" * 64
"""`prev` of the very first line."""
FILE_NAME: Final = re.compile(r"audit-([0-9]{8})\.jsonl")
FILE_EVENT: Final = "file"
"""The first line of each file: its number, and the lowest number that is still to be there."""
_RETRY_SECONDS: Final = 5.0
_BACKLOG_LINES: Final = 10_000
_TAIL_BYTES: Final = 64 * 1024
"""A line is far shorter: names have 256 characters at most."""


class AuditError(Exception):
    """A log that cannot be opened; the message is one clear line."""

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass
        """Whether another try may succeed with nobody doing anything here."""


class AuditUnavailable(Exception):
    """A line could not be made durable: what it speaks of must not happen."""


class _Item(msgspec.Struct, frozen=True):
    """Something to write."""

    event: str
    fields: Mapping[str, Any]
    at: datetime
    future: asyncio.Future[None] | None
    """Who waits until it is durable; None when nobody does."""


class Audit:
    """The log, open. `note` and `record` may be called from the main loop only."""

    def __init__(
        self,
        directory: Path,
        settings: AuditSection,
        *,
        logs_lines: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`logs_lines`: say every line in the log too (journald keeps it where we cannot write)."""
        self.directory = directory
        self._settings = settings
        self._logs_lines = logs_lines
        self._now = now
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._backlog: list[_Item] = []
        self._lost = 0
        self._trouble: str | None = None
        self._failure: str | None = None
        self._on_trouble: Callable[[str | None], None] = lambda _: None
        self._on_failure: Callable[[], None] = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._descriptor = -1
        self._number = 0
        self._next_number = 0
        """The file to begin when none is open."""
        self._size = 0
        self._seq = 0
        self._last = GENESIS

    async def open(
        self,
        *,
        on_trouble: Callable[[str | None], None],
        on_failure: Callable[[], None],
        **fields: Any,
    ) -> None:
        """Continue where the last process ended, and say so with `fields`. Raises AuditError.

        `on_trouble` hears, in this loop, that nothing can be written, and with None that it can
        again. `on_failure` hears that an fsync failed: nothing written since can be relied on.
        """
        self._loop = asyncio.get_running_loop()
        self._on_trouble, self._on_failure = on_trouble, on_failure
        try:
            torn = await in_thread(self._continue, "audit")
        except OSError as error:
            raise AuditError(
                f"the audit log {self.directory} cannot be used: {error.strerror}",
                may_pass=is_passing(error),
            ) from None
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
        self._thread.start()
        self.note("opened", **fields, **({"torn_bytes": torn} if torn else {}))

    async def close(self) -> None:
        """Write what waits, and end."""
        thread = self._thread
        if thread is None:
            return
        self.note("closed")
        self._queue.put(None)
        await in_thread(thread.join, "audit")
        os.close(self._descriptor)

    def note(self, event: str, **fields: Any) -> None:
        """Write a line soon. It is durable with the next that is waited for."""
        self._queue.put(_Item(event, fields, self._now(), None))

    async def record(self, event: str, **fields: Any) -> None:
        """Write a line and wait until it is durable. Raises AuditUnavailable."""
        future = asyncio.get_running_loop().create_future()
        self._queue.put(_Item(event, fields, self._now(), future))
        await future

    # In the thread

    def _continue(self) -> int:
        """Find the end of the chain; the bytes of an unfinished line that were cut. Raises OSError.

        A process that died may have left a part of a line. A line that is whole and still none is
        damage: it is left for `arc-agent audit verify` to find, and the log goes on in a new file.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        torn = 0
        for path in sorted(audit_files(self.directory), reverse=True):
            tail, size = _tail(path)
            whole = tail[: tail.rfind(b"\n") + 1]
            if not whole and size < _TAIL_BYTES:
                self._next_number = number_of(path)  # it was being made; it is begun again
                torn += size
                continue
            last = whole[:-1].rpartition(b"\n")[2]
            self._last = sha256(last).hexdigest()
            self._seq = _last_seq(whole)
            if self._next_number > 0:
                return torn
            if not _is_line(last):
                log.error("audit.damaged", file=path.name, hint="arc-agent audit verify")
                self._next_number = number_of(path) + 1
                return torn
            torn = len(tail) - len(whole)
            self._number, self._size = number_of(path), size - torn
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            if torn:
                os.ftruncate(self._descriptor, self._size)
            return torn
        return torn

    def _write_all(self) -> None:
        """The thread's life."""
        try:
            while self._write_next():
                pass
            if self._descriptor >= 0 and self._failure is None:
                os.fdatasync(self._descriptor)
        except Exception:  # without it nothing may be started: the agent must not go on
            log.critical("audit.died", exc_info=True)
            self._call(self._on_failure)

    def _write_next(self) -> bool:
        """Wait for something to write, and write all that waits. False at the end."""
        items, self._backlog = self._backlog, []
        try:
            next_ = self._queue.get(timeout=_RETRY_SECONDS if self._trouble else None)
            while next_ is not None:
                items.append(next_)
                next_ = self._queue.get_nowait()
        except queue.Empty:
            if not items:
                items.append(_Item("available", {}, self._now(), None))
            goes_on = True
        else:
            goes_on = False
        if items:
            self._write_batch(items)
        return goes_on

    def _write_batch(self, items: list[_Item]) -> None:
        """Write, make durable, and tell who waits."""
        try:
            self._append(items)
        except OSError as error:
            self._failed(items, error.strerror or str(error))
            return
        if self._trouble is not None:
            self._trouble = None
            log.info("audit.available", lost=self._lost)
            self._lost = 0
            self._call(lambda: self._on_trouble(None))
        for item in items:
            self._resolve(item, None)

    def _append(self, items: list[_Item]) -> None:
        """All of them or none. Raises OSError."""
        if self._failure is not None:
            raise OSError(0, self._failure)
        if self._descriptor < 0 or self._size >= self._settings.max_bytes:
            self._begin_file()
        if self._lost:
            items = [_Item("lost", {"lines": self._lost}, self._now(), None), *items]
        seq, last, lines = self._seq, self._last, list[bytes]()
        for item in items:
            seq += 1
            line = _line(seq, item, last)
            last = sha256(line).hexdigest()
            lines.append(line)
        data = b"".join(line + b"\n" for line in lines)
        self._write(self._descriptor, data, self._size)
        if any(item.future is not None for item in items):
            self._sync(self._descriptor)
        self._size += len(data)
        self._seq, self._last = seq, last
        if self._logs_lines:
            for line in lines:
                told = cast("dict[str, Any]", msgspec.json.decode(line))
                what = told.pop("event")
                log.info("audit", what=what, **told, sha256=sha256(line).hexdigest())

    def _begin_file(self) -> None:
        """Go on in a fresh file, and drop the oldest ones. Raises OSError."""
        number = max(1, self._next_number)
        if self._descriptor >= 0:
            self._sync(self._descriptor)
            number = self._number + 1
        path = self.directory / f"audit-{number:08}.jsonl"
        files = sorted(audit_files(self.directory))
        oldest = max(
            min([number, *map(number_of, files)]), number - max(1, self._settings.keep) + 1
        )
        item = _Item(FILE_EVENT, {"file": number, "oldest": oldest}, self._now(), None)
        line = _line(self._seq + 1, item, self._last)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        fresh = os.open(path, flags, 0o600)
        try:
            self._write(fresh, line + b"\n", 0)
            self._sync(fresh)
            sync_directory(self.directory)
        except OSError:
            os.close(fresh)
            raise
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._number, self._size = fresh, number, len(line) + 1
        self._seq, self._last = self._seq + 1, sha256(line).hexdigest()
        for file in files:
            if number_of(file) < oldest:
                file.unlink(missing_ok=True)

    def _write(self, descriptor: int, data: bytes, size: int) -> None:
        """Append, or leave the file as it was. Raises OSError."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(descriptor, view) :]
        except OSError:
            os.ftruncate(descriptor, size)
            raise

    def _sync(self, descriptor: int) -> None:
        """Make a file durable. Raises OSError; then nothing more is written by this process."""
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            self._failure = error.strerror or str(error)
            log.critical("audit.failed", reason=self._failure)
            self._call(self._on_failure)
            raise

    def _failed(self, items: list[_Item], reason: str) -> None:
        """Keep what nobody waited for; tell the others that it will not be."""
        if self._trouble is None:
            log.error(
                "audit.unavailable", reason=reason, hint="no command is started until it can write"
            )
            self._call(lambda: self._on_trouble(reason))
        self._trouble = reason
        kept = [item for item in items if item.future is None]
        self._lost += max(0, len(kept) - _BACKLOG_LINES)
        self._backlog = kept[-_BACKLOG_LINES:]
        for item in items:
            self._resolve(item, AuditUnavailable(reason))

    def _resolve(self, item: _Item, error: AuditUnavailable | None) -> None:
        """Tell who waits for a line."""
        future = item.future
        if future is None:
            return

        def finish() -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self._call(finish)

    def _call(self, call: Callable[[], None]) -> None:
        """Call in the main loop."""
        if self._loop is not None:
            call_in(self._loop, call)


def audit_files(directory: Path) -> list[Path]:
    """The files of a log, in no order. Raises OSError."""
    return [path for path in directory.iterdir() if FILE_NAME.fullmatch(path.name)]


def number_of(path: Path) -> int:
    """The number in a file's name."""
    found = FILE_NAME.fullmatch(path.name)
    return int(found[1]) if found else 0


def _line(seq: int, item: _Item, prev: str) -> bytes:
    """A line, without its end."""
    at = item.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    fields = {name: value for name, value in item.fields.items() if value is not None}
    return msgspec.json.encode({"seq": seq, "at": at, "event": item.event, **fields, "prev": prev})


def _tail(path: Path) -> tuple[bytes, int]:
    """The end of a file, and the size of all of it. Raises OSError."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        return file.read(), size


def _last_seq(lines: bytes) -> int:
    """The number of the last line that can be read; 0 when none can."""
    for line in reversed(lines.splitlines()):
        if _is_line(line):
            return int(msgspec.json.decode(line)["seq"])
    return 0


def _is_line(line: bytes) -> bool:
    """Whether something can be a line of the log."""
    try:
        found: Any = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    if not isinstance(found, dict):
        return False
    fields = cast("dict[str, Any]", found)
    return isinstance(fields.get("seq"), int) and isinstance(fields.get("prev"), str)
