"""Errors that end the agent at its start, and whether its unit is to try again."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from arc_agent.cli.main import main
from arc_agent.jobs import spool_database

START = ["run", "--server", "http://127.0.0.1:9", "--deployment", "dep-1", "--data-dir"]
AGAIN = 1
LEFT = 2


def test_a_full_disk_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", full)
        code = main([*START, str(tmp_path / "agent")])

    assert code == AGAIN
    assert "No space left" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("sqlite_code", "code"), [(sqlite3.SQLITE_FULL, AGAIN), (sqlite3.SQLITE_CORRUPT, LEFT)]
)
def test_a_spool_is_tried_again_when_it_is_the_disk_and_not_the_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sqlite_code: int, code: int
) -> None:
    def fail(_: Path) -> None:
        error = sqlite3.OperationalError("not now")
        error.sqlite_errorcode = sqlite_code
        raise error

    monkeypatch.setattr(spool_database, "_connect", fail)

    assert main([*START, str(tmp_path / "agent")]) == code


def test_a_directory_that_is_a_file_is_left(tmp_path: Path) -> None:
    (tmp_path / "agent").touch()

    assert main([*START, str(tmp_path / "agent")]) == LEFT
