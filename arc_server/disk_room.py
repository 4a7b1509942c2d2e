"""Room on the disk of the data directory: how much there is, and what the server takes in with it.

Four levels, by free bytes: from `soft` on, no new blobs of params are taken; from `hard` on no new
commands, while leases, responses, deletes and reads go on; at `critical` nothing that adds data. A
level is left only when there is a quarter more room than its mark asks for, or it would flap.

A ballast file takes room that the server gives up at the critical level: in WAL mode SQLite needs
room even to delete, to checkpoint, and to be opened.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import structlog

from arc_protocol.errors import ArcError, InsufficientStorage

log = structlog.get_logger(__name__)

BALLAST: Final = "ballast"
"""The name of the ballast in the data directory."""
OPENING_BYTES: Final = 8 << 20
"""Room that is made by giving up the ballast before a database is opened: its WAL is about as
long."""
_LEAVING: Final = 1.25
"""Free bytes at which a level is left, by its mark."""
_RETRY_SECONDS: Final = 10


class DiskLevel(IntEnum):
    """Level of a disk that fills up."""

    OK = 0
    SOFT = 1
    HARD = 2
    CRITICAL = 3


class DiskMarks(msgspec.Struct, frozen=True, kw_only=True):
    """Free bytes below which a level begins, filled from the configuration."""

    soft_bytes: int = 1 << 30
    hard_bytes: int = 256 << 20
    critical_bytes: int = 64 << 20
    ballast_bytes: int = 64 << 20

    def on(self, total_bytes: int) -> DiskMarks:
        """Return the marks for a disk of that size: on a small one they are a part of it."""
        return DiskMarks(
            soft_bytes=min(self.soft_bytes, total_bytes // 10),
            hard_bytes=min(self.hard_bytes, total_bytes // 20),
            critical_bytes=min(self.critical_bytes, total_bytes // 50),
            ballast_bytes=min(self.ballast_bytes, total_bytes // 8),
        )


class Measured(NamedTuple):
    """The size of a file system, in bytes."""

    free: int
    """Bytes that a process without privileges may still take."""
    total: int


def measure(directory: Path) -> Measured:
    """Measure the file system of a directory. Raises OSError."""
    found = os.statvfs(directory)
    return Measured(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


class DiskRoom:
    """The room of one data directory, as last looked at. For the event loop, but for `look`."""

    def __init__(
        self,
        directory: Path,
        marks: DiskMarks,
        *,
        reusable_bytes: Callable[[], Awaitable[int]],
        checkpoint: Callable[[], Awaitable[None]],
        gauge: Callable[[Path], Measured] = measure,
    ) -> None:
        """Measure with `gauge`; add what the database can fill without growing.

        `checkpoint` gives the room of the database's log back, which is mostly 8 MB.
        """
        self.level = DiskLevel.OK
        self.measured: Measured | None = None
        """The disk as last measured; None until it was."""
        self._directory = directory
        self._ballast = directory / BALLAST
        self._wanted = marks
        self._marks = marks
        self._reusable_bytes = reusable_bytes
        self._checkpoint = checkpoint
        self._gauge = gauge
        self._for_blobs: float = float("inf")
        self._reserved = 0

    async def run(self, interval_seconds: float) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(interval_seconds)

    async def look(self) -> None:
        """Measure the disk, and give up or take back the ballast by what is found."""
        try:
            reusable = await self._reusable_bytes()
        except ArcError:  # a database that does not answer has no room to offer
            reusable = 0
        try:
            found, held = await asyncio.to_thread(self._measure)
        except OSError as error:
            log.warning("disk.not_measured", reason=error.strerror)
            return
        self.measured = found
        self._marks = self._wanted.on(found.total)
        lacking = max(0, self._marks.ballast_bytes - held)
        self._for_blobs = found.free - lacking
        level = self._level_at(self._for_blobs, self._for_blobs + reusable)
        is_worse = level > self.level
        if level is not self.level:
            tell = log.info if level < self.level else log.warning
            tell(
                "disk.level",
                now=level.name.lower(),
                was=self.level.name.lower(),
                free_bytes=found.free,
                reusable_bytes=reusable,
            )
            self.level = level
        if (level is DiskLevel.CRITICAL and held) or held > self._marks.ballast_bytes:
            await asyncio.to_thread(release_ballast, self._directory)
        elif lacking and level < DiskLevel.HARD and self._for_blobs >= self._marks.critical_bytes:
            await asyncio.to_thread(_take_ballast, self._ballast, self._marks.ballast_bytes)
        if level is DiskLevel.CRITICAL or (is_worse and level is DiskLevel.HARD):
            with suppress(ArcError):
                await self._checkpoint()

    def check(self, refused_at: DiskLevel) -> None:
        """Raise InsufficientStorage at a level, and above it."""
        if self.level >= refused_at:
            raise _full(_WHAT[refused_at])

    def reserve(self, size: int, *, is_result: bool) -> Reservation:
        """Set room aside for a blob that is to be written.

        A result is taken in for longer than new params: its work is done. Raises
        InsufficientStorage.
        """
        reservation = Reservation(self, is_result=is_result)
        reservation.extend(size)
        return reservation

    def check_blob(self, size: int, *, is_result: bool) -> None:
        """Raise InsufficientStorage if a blob of that size would not be taken in now."""
        self.check(DiskLevel.CRITICAL if is_result else DiskLevel.SOFT)
        floor = self._marks.critical_bytes if is_result else self._marks.soft_bytes
        if self._for_blobs - self._reserved - size < floor:
            raise _full("bodies of this size")

    def move(self, *, reserved: int = 0, written: int = 0) -> None:
        """Count bytes that a reservation has taken, given back or used up."""
        self._reserved += reserved - written
        self._for_blobs -= written

    def _measure(self) -> tuple[Measured, int]:
        try:
            held = self._ballast.stat().st_size
        except FileNotFoundError:
            held = 0
        return self._gauge(self._directory), held

    def _level_at(self, for_blobs: float, for_commands: float) -> DiskLevel:
        reached = self._level_by(for_blobs, for_commands, 1)
        if reached >= self.level:
            return reached
        return max(reached, min(self.level, self._level_by(for_blobs, for_commands, _LEAVING)))

    def _level_by(self, for_blobs: float, for_commands: float, factor: float) -> DiskLevel:
        if for_commands < self._marks.critical_bytes * factor:
            return DiskLevel.CRITICAL
        if for_commands < self._marks.hard_bytes * factor:
            return DiskLevel.HARD
        return DiskLevel.SOFT if for_blobs < self._marks.soft_bytes * factor else DiskLevel.OK


class Reservation:
    """Room that is set aside for one blob, until it is written or given up."""

    def __init__(self, room: DiskRoom, *, is_result: bool) -> None:
        self._room = room
        self._is_result = is_result
        self._left = 0

    def extend(self, size: int) -> None:
        """Set more room aside. Raises InsufficientStorage."""
        self._room.check_blob(size, is_result=self._is_result)
        self._room.move(reserved=size)
        self._left += size

    def write(self, size: int) -> None:
        """Use up what is set aside, before it is written; set more aside if it is not enough.

        Raises InsufficientStorage.
        """
        if size > self._left:
            self.extend(size - self._left)
        self._room.move(written=size)
        self._left -= size

    def release(self) -> None:
        """Give back what was not used."""
        self._room.move(reserved=-self._left)
        self._left = 0


_WHAT: Final = {
    DiskLevel.SOFT: "new large bodies",
    DiskLevel.HARD: "new commands",
    DiskLevel.CRITICAL: "anything new",
}


def _full(what: str) -> InsufficientStorage:
    return InsufficientStorage(
        f"the disk of the server has no room for {what}; try again later",
        retry_after_seconds=_RETRY_SECONDS,
    )


def release_ballast(directory: Path) -> None:
    """Give the room of the ballast to the database. Blocks."""
    try:
        (directory / BALLAST).unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        log.error("disk.ballast_kept", reason=error.strerror)
        return
    log.warning("disk.ballast_released", directory=str(directory))


def make_room_to_open(directory: Path) -> None:
    """Give up the ballast if there is too little room to open the database. Blocks."""
    try:
        is_tight = measure(directory).free < OPENING_BYTES
    except OSError:
        return
    if is_tight:
        release_ballast(directory)


def _take_ballast(file: Path, size: int) -> None:
    """Take the room of the ballast. A disk that has none after all leaves it for later. Blocks."""
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(handle, 0, size)
            os.ftruncate(handle, size)
        finally:
            os.close(handle)
    except OSError as error:
        file.unlink(missing_ok=True)
        if error.errno != errno.ENOSPC:
            log.warning("disk.no_ballast", reason=error.strerror)
