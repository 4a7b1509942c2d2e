"""The audit reader follows the chain of an audit log and reads its lines back.

A chain without a key shows changes only to a reader who knows its end: a process that may write all
files can also make them anew. So the hashes go to journald as well, and `expect` takes one that was
kept elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from arc_agent.guard.audit_chain import (
    FILE_EVENT,
    FORMAT,
    GENESIS,
    audit_files,
    is_link,
    number_of,
)
from arc_protocol.codec import UNREADABLE


class Broken(Exception):
    """The log is not as it was written; the message says where and how."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of a log whose chain holds."""

    files: int
    lines: int
    first_seq: int
    last_sha256: str
    is_unfinished: bool
    """A part of a line stands at the end: it is being written, or a crash cut it."""


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of every line."""

    seq: int
    event: str
    prev: str
    format: int = 1
    file: int | None = None
    oldest: int | None = None


class _Started(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a `started` line that limits need."""

    at: datetime
    rule: str | None = None


def verify(directory: Path, expect: str | None = None) -> Report:
    """Follow the chain through all files. Raises Broken, OSError.

    `expect` is the SHA-256 of a line that must be in it: only so it shows that the end was cut off.
    """
    files = sorted(audit_files(directory))
    if not files:
        raise Broken(f"{directory}: no audit log")
    prev: bytes | None = None
    seq = lines = first_seq = oldest = 0
    is_unfinished = is_expected = False
    for position, path in enumerate(files):
        if position and number_of(path) != number_of(files[position - 1]) + 1:
            raise Broken(f"{path.name}: the file before it is missing")
        data = path.read_bytes()
        *whole, rest = data.split(b"\n")
        is_last = path == files[-1]
        is_unfinished = bool(rest) or not whole
        if is_unfinished and not is_last:
            raise Broken(f"{path.name}: it ends in the middle of a line")
        for number, text in enumerate(whole, start=1):
            where = f"{path.name}:{number}"
            line = _read(text, where)
            if not lines:
                first_seq, seq = line.seq, line.seq - 1
                prev = GENESIS if number_of(path) == 1 else None
            if prev is not None and not is_link(line.prev, prev):
                raise Broken(f"{where}: it does not follow from the line before it")
            if line.seq != seq + 1:
                raise Broken(f"{where}: its number is {line.seq}, not {seq + 1}")
            if (line.event == FILE_EVENT) != (number == 1):
                raise Broken(f"{where}: a file begins, and only begins, with its own number")
            if number == 1:
                if line.file != number_of(path):
                    raise Broken(f"{where}: it was the file {line.file}")
                oldest = line.oldest or 0
                if line.format > FORMAT:
                    raise Broken(f"{where}: format {line.format}, of a newer arc-agent")
            prev, seq, lines = sha256(text).digest(), line.seq, lines + 1
            is_expected = is_expected or prev.hex() == expect
    if number_of(files[0]) > max(1, oldest):
        raise Broken(f"{files[0].name}: files before it are missing, from number {oldest} on")
    if number_of(files[0]) == 1 and first_seq != 1:
        raise Broken(f"{files[0].name}: its first line has the number {first_seq}")
    if expect is not None and not is_expected:
        raise Broken(f"no line has the SHA-256 {expect}: the end was cut off, or all was rewritten")
    return Report(
        files=len(files),
        lines=lines,
        first_seq=first_seq,
        last_sha256=(prev or GENESIS).hex(),
        is_unfinished=is_unfinished,
    )


def entries(directory: Path, wait: Callable[[], None] | None = None) -> Iterator[dict[str, Any]]:
    """Yield every line that can be read, oldest first. Raises OSError.

    With `wait`, go on for ever with the lines that are added: it is called between two looks.
    """
    done = 0
    while True:
        for path in sorted(audit_files(directory)):
            if number_of(path) <= done:
                continue
            with path.open("rb") as file:
                yield from _lines(file)
                while wait is not None and not _has_next(directory, path):
                    wait()
                    yield from _lines(file)
                yield from _lines(file)  # all that came before the next file began
            done = number_of(path)
        if wait is None:
            return
        wait()


def _has_next(directory: Path, path: Path) -> bool:
    """Return True if the log goes on in another file. Raises OSError."""
    return any(number_of(file) > number_of(path) for file in audit_files(directory))


def _lines(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the whole lines from here on that can be read. Raises OSError."""
    while True:
        position = file.tell()
        text = file.readline()
        if not text.endswith(b"\n"):
            file.seek(position)
            return
        try:
            found: Any = msgspec.json.decode(text)
        except UNREADABLE:
            continue
        if isinstance(found, dict):
            yield cast("dict[str, Any]", found)


def started_since(directory: Path, since: datetime) -> Iterator[tuple[str, datetime]]:
    """Iterate over the rule and time of each command started since an instant.

    Reads the two newest files: an hour that fills more has more commands than any limit by the
    hour. Raises OSError.
    """
    for path in sorted(audit_files(directory))[-2:]:
        with path.open("rb") as file:
            for text in file:
                if b'"event":"started"' not in text:
                    continue
                try:
                    found = msgspec.json.decode(text, type=_Started)
                except UNREADABLE:
                    continue
                if found.rule is not None and found.at >= since:
                    yield found.rule, found.at


def _read(text: bytes, where: str) -> _Line:
    """Return a line as the chain needs it. Raises Broken."""
    try:
        return msgspec.json.decode(text, type=_Line)
    except UNREADABLE:
        raise Broken(f"{where}: this is no line of an audit log") from None
