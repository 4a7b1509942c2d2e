"""The levels of a disk that fills up, its ballast, and room that is set aside for uploads."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from arc_protocol.errors import InsufficientStorage, StoreUnavailable
from arc_server import disk_room
from arc_server.disk_room import BALLAST, DiskLevel, DiskMarks, DiskRoom, Measured

MARKS = DiskMarks(soft_bytes=1_000, hard_bytes=400, critical_bytes=100, ballast_bytes=50)
LARGE_DISK = 10**9


class Disk:
    """A disk whose free bytes a test sets; the ballast takes its part of them."""

    def __init__(self, directory: Path, free: int) -> None:
        self.directory = directory
        self.free = free
        """With the ballast given up."""
        self.total = LARGE_DISK
        self.reusable = 0
        self.is_away = False
        self.checkpoints = 0
        self.room = DiskRoom(
            directory,
            MARKS,
            reusable_bytes=self._reusable_bytes,
            checkpoint=self._checkpoint,
            gauge=self._measure,
        )

    async def at(self, free: int) -> DiskLevel:
        """Return the level once so much is free."""
        self.free = free
        await self.room.look()
        return self.room.level

    @property
    def ballast_bytes(self) -> int:
        file = self.directory / BALLAST
        return file.stat().st_size if file.exists() else 0

    async def _checkpoint(self) -> None:
        self.checkpoints += 1

    async def _reusable_bytes(self) -> int:
        if self.is_away:
            raise StoreUnavailable("away")
        return self.reusable

    def _measure(self, directory: Path) -> Measured:
        assert directory == self.directory
        return Measured(self.free - self.ballast_bytes, self.total)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path, 2_000)


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as events:
        yield events


async def test_a_disk_goes_down_through_its_levels_at_their_marks(disk: Disk) -> None:
    # All marks count what is free beside the ballast of 50.
    for free, level in ((1_050, "OK"), (1_049, "SOFT"), (449, "HARD"), (149, "CRITICAL")):
        assert await disk.at(free) is DiskLevel[level]


async def test_a_level_is_left_with_a_quarter_more_room_only(disk: Disk, logged: list[Any]) -> None:
    assert await disk.at(149) is DiskLevel.CRITICAL
    for free, level in (
        (174, "CRITICAL"), (175, "HARD"),
        (549, "HARD"), (550, "SOFT"),
        (1_299, "SOFT"), (1_300, "OK"),
    ):  # fmt: skip
        assert await disk.at(free) is DiskLevel[level], free

    told = [(event["was"], event["now"]) for event in logged if event["event"] == "disk.level"]
    assert told == [("ok", "critical"), ("critical", "hard"), ("hard", "soft"), ("soft", "ok")]


async def test_free_pages_of_the_database_are_room_for_commands_and_not_for_blobs(
    disk: Disk,
) -> None:
    disk.reusable = 10_000

    assert await disk.at(120) is DiskLevel.SOFT

    disk.is_away = True
    assert await disk.at(120) is DiskLevel.CRITICAL


async def test_the_ballast_is_given_up_when_critical_and_taken_back_when_there_is_room(
    disk: Disk,
) -> None:
    await disk.at(2_000)
    assert disk.ballast_bytes == 50
    await disk.at(120)
    assert disk.ballast_bytes == 0
    assert await disk.at(120) is DiskLevel.CRITICAL, "its room is not counted twice"
    await disk.at(500)
    assert disk.ballast_bytes == 0, "the level is hard still"
    await disk.at(2_000)
    assert disk.ballast_bytes == 50


async def test_a_ballast_that_is_larger_than_configured_is_replaced(disk: Disk) -> None:
    (disk.directory / BALLAST).write_bytes(bytes(90))

    await disk.at(2_000)
    await disk.at(2_000)

    assert disk.ballast_bytes == 50


async def test_the_log_of_the_database_gives_its_room_back_when_room_is_short(disk: Disk) -> None:
    found: list[int] = []
    for free in (2_000, 1_000, 449, 449, 149, 149, 2_000):
        await disk.at(free)
        found.append(disk.checkpoints)

    assert found == [0, 0, 1, 1, 2, 3, 3]


async def test_marks_are_a_part_of_a_small_disk(disk: Disk) -> None:
    disk.total = 320

    assert await disk.at(72) is DiskLevel.OK
    assert disk.ballast_bytes == 40
    assert await disk.at(71) is DiskLevel.SOFT


async def test_a_disk_without_room_for_the_ballast_goes_without(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(disk_room.os, "posix_fallocate", full)

    assert await disk.at(2_000) is DiskLevel.OK

    assert not (disk.directory / BALLAST).exists()


async def test_a_disk_that_cannot_be_measured_keeps_its_level(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await disk.at(300)
    monkeypatch.setattr(disk, "_measure", lambda _: 1 / 0)

    def gone(_: Path) -> Measured:
        raise OSError(errno.EIO, "gone")

    monkeypatch.setattr(disk.room, "_gauge", gone)
    await disk.room.look()

    assert disk.room.level is DiskLevel.HARD


@pytest.mark.parametrize(
    ("free", "refused"),
    [
        (2_000, set[DiskLevel]()),
        (1_000, {DiskLevel.SOFT}),
        (400, {DiskLevel.SOFT, DiskLevel.HARD}),
        (100, {DiskLevel.SOFT, DiskLevel.HARD, DiskLevel.CRITICAL}),
    ],
)
async def test_a_level_refuses_what_is_refused_at_it_and_above(
    disk: Disk, free: int, refused: set[DiskLevel]
) -> None:
    await disk.at(free)
    found: set[DiskLevel] = set()

    for level in (DiskLevel.SOFT, DiskLevel.HARD, DiskLevel.CRITICAL):
        try:
            disk.room.check(level)
        except InsufficientStorage:
            found.add(level)

    assert found == refused


# reservations


async def test_uploads_in_progress_set_their_room_aside(disk: Disk) -> None:
    await disk.at(2_050)
    first = disk.room.reserve(600, is_result=False)
    with pytest.raises(InsufficientStorage):
        disk.room.reserve(600, is_result=False)
    second = disk.room.reserve(400, is_result=False)

    first.release()
    second.release()

    disk.room.reserve(1_000, is_result=False).release()


async def test_what_is_written_is_not_counted_twice(disk: Disk) -> None:
    await disk.at(2_050)
    upload = disk.room.reserve(800, is_result=False)
    upload.write(800)

    with pytest.raises(InsufficientStorage):
        disk.room.reserve(201, is_result=False)
    disk.room.reserve(200, is_result=False).release()
    await disk.at(2_050 - 800)
    disk.room.reserve(200, is_result=False).release()


async def test_an_upload_of_unknown_size_is_cut_off_at_the_mark(disk: Disk) -> None:
    await disk.at(2_050)
    upload = disk.room.reserve(0, is_result=False)

    for _ in range(10):
        upload.write(100)
    with pytest.raises(InsufficientStorage):
        upload.write(100)
    upload.release()


async def test_a_result_is_taken_in_with_less_room_than_params(disk: Disk) -> None:
    await disk.at(450)
    with pytest.raises(InsufficientStorage):
        disk.room.reserve(1, is_result=False)

    disk.room.reserve(300, is_result=True).release()

    with pytest.raises(InsufficientStorage):
        disk.room.reserve(301, is_result=True)


def test_the_ballast_makes_room_to_open_a_database_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / BALLAST).write_bytes(b"x")
    disk_room.make_room_to_open(tmp_path)
    assert (tmp_path / BALLAST).exists()

    monkeypatch.setattr(disk_room, "measure", lambda _: Measured(0, LARGE_DISK))
    disk_room.make_room_to_open(tmp_path)

    assert not (tmp_path / BALLAST).exists()
