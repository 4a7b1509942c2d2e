"""A power cut leaves one of several states of a directory, computed from the log of disk.c.

Synced writes are there. Of the other writes to a file any subset may be there, in any order, and
of each write any of its sectors. Names (files made, renamed, removed) come and go in order, as
journaling file systems have it: a prefix of what was done in a directory since its last sync.
Syncing a file does not make its name durable: POSIX promises no more.
"""

from __future__ import annotations

import glob
import os
import random
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

SECTOR = 512
_HEAD = struct.Struct("<IIQQ")
_NOT_KEPT = "-shm"
"""Shared memory: nothing of it counts after a restart."""


class Kind(IntEnum):
    """As in disk.c."""

    WRITE = 1
    TRUNCATE = 2
    SYNC = 3
    CREATE = 4
    UNLINK = 5
    RENAME = 6
    MKDIR = 7
    RMDIR = 8
    NOTE = 9
    FAULT = 10


class Record(NamedTuple):
    """One line of the log."""

    kind: Kind
    inode: int
    offset: int
    """Or the new length."""
    data: bytes
    """What was written, a path, or a remark."""


def read_log(file: Path) -> Iterator[Record]:
    """All records; the last one may be cut off, if its process was killed."""
    log = file.read_bytes()
    at = 0
    while at + _HEAD.size <= len(log):
        kind, length, inode, offset = _HEAD.unpack_from(log, at)
        at += _HEAD.size
        if at + length > len(log):
            return
        yield Record(Kind(kind), inode, offset, log[at : at + length])
        at += length


class Write(NamedTuple):
    """Bytes at an offset; without bytes: the file is `offset` long from then on."""

    offset: int
    data: bytes | None

    def apply(self, content: bytearray) -> None:
        """All of it."""
        if self.data is None:
            if len(content) > self.offset:
                del content[self.offset :]
            else:
                content.extend(bytes(self.offset - len(content)))
            return
        end = self.offset + len(self.data)
        if len(content) < end:
            content.extend(bytes(end - len(content)))
        content[self.offset : end] = self.data

    def torn(self, source: random.Random) -> Iterator[Write]:
        """Some of its sectors."""
        if self.data is None:
            yield self
            return
        start = 0
        while start < len(self.data):
            end = start + SECTOR - (self.offset + start) % SECTOR
            if source.random() < 0.5:
                yield Write(self.offset + start, self.data[start:end])
            start = end


@dataclass
class Inode:
    """A file: what is on the disk for sure, and what may be."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Write] = field(default_factory=list)

    def sync(self) -> None:
        """Note that the written bytes are there."""
        for write in self.pending:
            write.apply(self.durable)
        self.pending.clear()


class Change(NamedTuple):
    """What happened to a name: it means `now` (None: nothing), and `was` means nothing."""

    name: str
    now: Inode | str | None
    was: str | None = None


DIRECTORY = "directory"


class Remains:
    """Follows a log, and at any point makes what a power cut there may leave."""

    def __init__(self, root: Path, image: Path, source: random.Random) -> None:
        """`root` is what was watched; `image` is a directory of ours."""
        self.image = image
        image.mkdir()
        self._root = str(root)
        self._shown: dict[str, bytes | None] = {}
        """What the image holds; None for a directory."""
        self._random = source
        self._inodes: dict[int, Inode] = {}
        self._names: dict[str, Inode | str] = {}
        """What is durable: paths below the root."""
        self._pending: dict[str, list[Change]] = {}
        """By directory."""

    def follow(self, record: Record) -> None:
        """One step on."""
        match record.kind:
            case Kind.WRITE:
                self._inode(record).pending.append(Write(record.offset, record.data))
            case Kind.TRUNCATE:
                self._inode(record).pending.append(Write(record.offset, None))
            case Kind.CREATE:
                self._inodes[record.inode] = Inode()
                self._change(_path(record.data), self._inodes[record.inode])
            case Kind.MKDIR:
                self._change(_path(record.data), DIRECTORY)
            case Kind.UNLINK | Kind.RMDIR:
                self._change(_path(record.data), None)
            case Kind.RENAME:
                old, new = record.data.split(b"\0")
                self._change(_path(new), self._inode(record), _path(old))
            case Kind.SYNC:
                self._sync(record)
            case Kind.NOTE | Kind.FAULT:
                pass

    def _inode(self, record: Record) -> Inode:
        return self._inodes.setdefault(record.inode, Inode())

    def _change(self, path: str, now: Inode | str | None, was: str | None = None) -> None:
        directory = os.path.dirname(path)
        self._pending.setdefault(directory, []).append(Change(path, now, was))

    def _sync(self, record: Record) -> None:
        path = _path(record.data)
        if path == self._root or self._is_directory(path):
            for change in self._pending.pop(path, []):
                _apply(change, self._names)
        else:
            self._inode(record).sync()

    def _is_directory(self, path: str) -> bool:
        pending = self._pending.get(os.path.dirname(path), [])
        return self._names.get(path) == DIRECTORY or any(
            change.name == path and change.now == DIRECTORY for change in pending
        )

    def cut(self, how: str = "") -> str:
        """Let `image` be what is left if the power fails now; how it was chosen.

        `how`: of what was not synced, none is left, all, some, or some and parts of some.
        """
        how = how or self._random.choice(("none", "all", "some", "some", "torn"))
        wanted: dict[str, bytes | None] = {}
        for path, node in sorted(self._surviving_names(how).items()):
            if path.endswith(_NOT_KEPT) or not self._has_parent(path, wanted):
                continue
            wanted[path] = self._surviving_bytes(node, how) if isinstance(node, Inode) else None
        self._show(wanted)
        return how

    def forget_image(self) -> None:
        """Note that the image was changed: make it from nothing the next time."""
        shutil.rmtree(self.image)
        self.image.mkdir()
        self._shown = {}

    def _has_parent(self, path: str, wanted: dict[str, bytes | None]) -> bool:
        parent = os.path.dirname(path)
        return parent == self._root or wanted.get(parent, b"") is None

    def _show(self, wanted: dict[str, bytes | None]) -> None:
        """Write what differs from the last image, and the databases, which were opened since."""
        for database in glob.glob(f"{self.image}/*.db*"):
            os.unlink(database)
        for path in sorted(self._shown.keys() - wanted.keys(), reverse=True):
            if self._shown[path] is None:
                os.rmdir(self._in_image(path))
            elif ".db" not in path:
                os.unlink(self._in_image(path))
        for path, data in wanted.items():
            if path not in self._shown and data is None:
                os.mkdir(self._in_image(path))
            elif data is not None and (".db" in path or self._shown.get(path) != data):
                with open(self._in_image(path), "wb") as file:
                    file.write(data)
        self._shown = wanted

    def _in_image(self, path: str) -> str:
        return f"{self.image}{path[len(self._root) :]}"

    def _surviving_names(self, how: str) -> dict[str, Inode | str]:
        names = dict(self._names)
        for changes in self._pending.values():
            kept = {"none": 0, "all": len(changes)}.get(how)
            if kept is None:
                kept = self._random.randint(0, len(changes))
            for change in changes[:kept]:
                _apply(change, names)
        return names

    def _surviving_bytes(self, inode: Inode, how: str) -> bytes:
        if how == "none" or not inode.pending:
            return bytes(inode.durable)
        content = bytearray(inode.durable)
        for write in inode.pending:
            if how == "all" or self._random.random() < 0.5:
                write.apply(content)
            elif how == "torn":
                for part in write.torn(self._random):
                    part.apply(content)
        return bytes(content)


def _apply(change: Change, names: dict[str, Inode | str]) -> None:
    if change.was is not None:
        names.pop(change.was, None)
    if change.now is None:
        names.pop(change.name, None)
    else:
        names[change.name] = change.now


def _path(data: bytes) -> str:
    return data.decode()
