"""The data directory: one agent at a time, and nothing of a dead one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from arc_agent.host.data_dir import DataDir, DataDirError, is_passing


def test_a_new_directory_is_private_and_complete(tmp_path: Path) -> None:
    with DataDir(tmp_path / "a" / "data") as made:
        assert made.bodies.is_dir()
        assert made.temporary.is_dir()
        assert made.path.stat().st_mode & 0o077 == 0


def test_a_second_agent_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    first = DataDir(tmp_path)

    with pytest.raises(DataDirError, match="is used by another agent") as refused:
        DataDir(tmp_path)
    assert refused.value.may_pass

    first.close()
    DataDir(tmp_path).close()


def test_temporary_files_of_a_dead_agent_are_removed_and_its_bodies_stay(tmp_path: Path) -> None:
    with DataDir(tmp_path) as dead:
        (dead.temporary / "cmd_1").mkdir()
        (dead.temporary / "cmd_1" / "params").write_bytes(b"x")
        (dead.bodies / "result").write_bytes(b"x")

    with DataDir(tmp_path) as fresh:
        assert list(fresh.temporary.iterdir()) == []
        assert [each.name for each in fresh.bodies.iterdir()] == ["result"]


def test_a_path_that_is_a_file_does_not_pass(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")

    with pytest.raises(DataDirError, match="cannot be used") as refused:
        DataDir(file)

    assert not refused.value.may_pass


def test_free_space_is_bytes_and_inodes(tmp_path: Path) -> None:
    with DataDir(tmp_path / "data") as made:
        free_bytes, free_inodes = made.free()
        assert free_bytes > 0
        assert free_inodes is None or free_inodes > 0


def test_a_directory_that_cannot_be_read_has_no_free_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def statvfs(_: object) -> None:
        raise OSError(errno.EIO, "I/O error")

    with DataDir(tmp_path) as made:
        monkeypatch.setattr(os, "statvfs", statvfs)

        assert made.free() == (0, 0)


def test_a_full_disk_passes_and_a_missing_right_does_not() -> None:
    assert is_passing(OSError(errno.ENOSPC, ""))
    assert not is_passing(OSError(errno.EACCES, ""))
