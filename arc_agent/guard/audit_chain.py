"""The files of an audit log, and the chain of hashes that runs through them.

Each line is a JSON object that ends on `prev`, the hash of the line before it: 128 bits of its
SHA-256. The files `audit-00000001.jsonl`, … continue one another; the highest number is the current
one. Files of format 1, made by versions before, have the whole SHA-256 in hex.
"""

from __future__ import annotations

import os
import re
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import structlog

from arc_agent.config.sections import AuditSection
from arc_agent.host.data_dir import sync_directory
from arc_protocol.codec import UNREADABLE

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

FORMAT: Final = 2
"""The format of the files that this version makes; the first line of each says it."""
GENESIS: Final = bytes(32)
"""The hash before the very first line."""
_LINK_BYTES: Final = 16
"""The part of a hash that `prev` carries: 22 characters a line in place of 64."""
_WHOLE_LINK_CHARS: Final = 64
FILE_NAME: Final = re.compile(r"audit-([0-9]{8})\.jsonl")
FILE_EVENT: Final = "file"
"""The first line of each file: its number, and the lowest number that is still to be there."""
_TAIL_BYTES: Final = 64 * 1024
"""A line is far shorter: names have 256 characters at most."""
_ENCODE: Final = msgspec.json.Encoder().encode


class Line(msgspec.Struct, frozen=True):
    """A line to be written."""

    event: str
    fields: Mapping[str, Any]
    at: datetime


class SyncFailed(OSError):
    """An fsync failed: nothing that was written since the last one can be relied on."""


class AuditChain:
    """The current file and the end of the chain. Its methods block for the disk."""

    def __init__(self, directory: Path, settings: AuditSection) -> None:
        """Prepare the chain; `open` opens its files."""
        self.directory = directory
        self._settings = settings
        self._descriptor = -1
        self._number = 0
        self._next_number = 0
        """The file to begin when none is open."""
        self._size = 0
        self._seq = 0
        self._last = GENESIS
        self._began_at: datetime | None = None
        """The time of the first line of the open file."""

    def open(self) -> int:
        """Find the end of the chain; return the bytes of an unfinished line that were cut.

        A process that died may have left a part of a line. A line that is whole and still none is
        damage: it is left for `arc-agent audit verify` to find, and the log goes on in a new file.
        Raises OSError.
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
            self._last = sha256(last).digest()
            self._seq = _last_seq(whole)
            if self._next_number > 0:
                return torn
            if not _is_line(last):
                log.error("audit.damaged", file=path.name, hint="arc-agent audit verify")
                self._next_number = number_of(path) + 1
                return torn
            torn = len(tail) - len(whole)
            self._number, self._size = number_of(path), size - torn
            if torn:
                os.truncate(path, self._size)
            beginning = _beginning(path)
            if beginning.format != FORMAT:
                self._next_number = self._number + 1  # a file has one format
                return torn
            self._began_at = beginning.at
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            return torn
        return torn

    def close(self) -> None:
        """Close the current file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def append(self, lines: Sequence[Line], *, syncs: bool) -> list[bytes]:
        """Write all lines or none, durably with `syncs`; return them as they are in the file.

        Raises OSError when none is written, SyncFailed when that is not known.
        """
        if self._descriptor < 0 or self._is_full(lines[0].at):
            self._begin_file(lines[0].at)
        seq, last, written = self._seq, self._last, list[bytes]()
        for line in lines:
            seq += 1
            text = _encoded(seq, line, last)
            last = sha256(text).digest()
            written.append(text)
        data = b"\n".join([*written, b""])
        _write(self._descriptor, data, self._size)
        if syncs:
            _sync(self._descriptor)
        self._size += len(data)
        self._seq, self._last = seq, last
        return written

    def sync(self) -> None:
        """Make all lines durable. Raises SyncFailed."""
        if self._descriptor >= 0:
            _sync(self._descriptor)

    def _is_full(self, now: datetime) -> bool:
        """Return True if the next line belongs into a new file."""
        is_old = self._began_at is not None and now - self._began_at >= timedelta(
            days=self._settings.max_days
        )
        return is_old or self._size >= self._settings.max_bytes

    def _oldest(self, number: int, files: Sequence[Path], now: datetime) -> int:
        """Return the number of the oldest file that is kept beside a new one. Raises OSError."""
        first = number - max(1, self._settings.keep) + 1
        since = (now - timedelta(days=self._settings.keep_days)).timestamp()
        for file in files:  # oldest first; a file was last written when its last line was
            if number_of(file) >= first and file.stat().st_mtime >= since:
                return min(number, number_of(file))
        return number

    def _begin_file(self, now: datetime) -> None:
        """Go on in a new file, and remove the oldest ones. Raises OSError, SyncFailed."""
        number = max(1, self._next_number)
        if self._descriptor >= 0:
            _sync(self._descriptor)
            number = self._number + 1
        path = self.directory / f"audit-{number:08}.jsonl"
        files = sorted(audit_files(self.directory))
        oldest = self._oldest(number, files, now)
        line = Line(FILE_EVENT, {"format": FORMAT, "file": number, "oldest": oldest}, now)
        text = _encoded(self._seq + 1, line, self._last)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            _write(descriptor, text + b"\n", 0)
            _sync(descriptor)
            sync_directory(self.directory)
        except OSError:
            os.close(descriptor)
            raise
        self.close()
        self._descriptor, self._number, self._size = descriptor, number, len(text) + 1
        self._seq, self._last = self._seq + 1, sha256(text).digest()
        self._began_at = now
        for file in files:
            if number_of(file) < oldest:
                file.unlink(missing_ok=True)


def audit_files(directory: Path) -> list[Path]:
    """Return the files of a log, in no order. Raises OSError."""
    return [path for path in directory.iterdir() if FILE_NAME.fullmatch(path.name)]


def number_of(path: Path) -> int:
    """Return the number in a file's name."""
    found = FILE_NAME.fullmatch(path.name)
    return int(found[1]) if found else 0


def _write(descriptor: int, data: bytes, size: int) -> None:
    """Append to a file of that size, or leave it as it was. Raises OSError."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _sync(descriptor: int) -> None:
    """Make a file durable. Raises SyncFailed."""
    try:
        os.fdatasync(descriptor)
    except OSError as error:
        raise SyncFailed(error.errno, error.strerror or str(error)) from error


def link(digest: bytes) -> str:
    """Return the hash of a line as the next one carries it."""
    return urlsafe_b64encode(digest[:_LINK_BYTES]).rstrip(b"=").decode()


def is_link(prev: str, digest: bytes) -> bool:
    """Return True if `prev`, of any format, leads to the line with this SHA-256."""
    return prev == (digest.hex() if len(prev) == _WHOLE_LINK_CHARS else link(digest))


def _encoded(seq: int, line: Line, last: bytes) -> bytes:
    """Return a line as it is written, without its end."""
    at = line.at.isoformat(timespec="milliseconds")[:23] + "Z"
    prev = link(last)
    fields = {name: value for name, value in line.fields.items() if value is not None}
    try:
        return _ENCODE({"seq": seq, "at": at, "event": line.event, **fields, "prev": prev})
    except (UnicodeEncodeError, TypeError):
        fields = {name: _escaped(value) for name, value in fields.items()}
        return _ENCODE({"seq": seq, "at": at, "event": line.event, **fields, "prev": prev})


def _escaped(value: Any) -> Any:
    """Return a value that JSON and UTF-8 can carry: others as text, lone surrogates escaped."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {_escaped(str(name)): _escaped(part) for name, part in items}
    if isinstance(value, list | tuple):
        return [_escaped(part) for part in cast("list[Any]", value)]
    return str(value).encode("utf-8", "backslashreplace").decode()


def _tail(path: Path) -> tuple[bytes, int]:
    """Return the end of a file, and the size of all of it. Raises OSError."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        return file.read(), size


class _Beginning(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a file's first line that its continuation needs."""

    at: datetime | None = None
    format: int = 1


def _beginning(path: Path) -> _Beginning:
    """Return the first line of a file, as far as it can be read. Raises OSError."""
    with path.open("rb") as file:
        try:
            return msgspec.json.decode(file.readline(_TAIL_BYTES), type=_Beginning)
        except UNREADABLE:
            return _Beginning()


def _last_seq(lines: bytes) -> int:
    """Return the number of the last line that can be read; 0 when none can."""
    for line in reversed(lines.splitlines()):
        if _is_line(line):
            return int(msgspec.json.decode(line)["seq"])
    return 0


def _is_line(line: bytes) -> bool:
    """Return True if something can be a line of the log."""
    try:
        found: Any = msgspec.json.decode(line)
    except UNREADABLE:
        return False
    if not isinstance(found, dict):
        return False
    fields = cast("dict[str, Any]", found)
    return isinstance(fields.get("seq"), int) and isinstance(fields.get("prev"), str)
