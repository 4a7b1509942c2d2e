"""Directories that root gives to the user of a service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from arc_runtime.directories import give, kept_by_owner

OWNER = 4242
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


def test_what_root_makes_is_given_and_what_the_user_linked_is_not(tmp_path: Path) -> None:
    data, victim = tmp_path / "data", tmp_path / "victim"
    (data / "blobs").mkdir(parents=True)
    os.chown(data, OWNER, OWNER)
    victim.write_text("root's")
    others = tmp_path / "others"
    others.mkdir()
    (others / "file").write_text("root's")

    with kept_by_owner(data):
        (data / "blobs" / "new").write_text("")
        (data / "link").symlink_to(victim)
        (data / "folder").symlink_to(others)
        (data / "same").hardlink_to(victim)

    assert [(data / "blobs" / "new").stat().st_uid, (data / "blobs").stat().st_uid] == [OWNER] * 2
    assert [each.stat().st_uid for each in (victim, others, others / "file")] == [0] * 3


def test_a_directory_that_becomes_a_link_at_the_last_moment_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, others = tmp_path / "data", tmp_path / "others"
    folder = data / "folder"
    for directory in (folder, others):
        directory.mkdir(parents=True)
        (directory / "file").write_text("root's")
    chown = os.chown

    def swap_and_chown(*arguments: Any, **more: Any) -> None:
        if not folder.is_symlink():
            folder.rename(data / "aside")
            folder.symlink_to(others)
        chown(*arguments, **more)

    monkeypatch.setattr(os, "chown", swap_and_chown)
    give(data, OWNER, OWNER)

    assert (data / "aside" / "file").stat().st_uid == OWNER
    assert (others / "file").stat().st_uid == 0
