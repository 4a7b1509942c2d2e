"""Roots that are booted at once share nothing, and leave nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import control_groups
from tests.support.booted_root import BootedRoot, remove_left
from tests.support.debian_root import PROJECT
from tests.support.waiting import wait_until

pytestmark = pytest.mark.systemd

KILLED = """
import os, signal
from tests.support.booted_root import BootedRoot
with BootedRoot("killed") as root:
    print(root.path.parent, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_two_roots_have_control_groups_of_their_own() -> None:
    with BootedRoot("one") as one, BootedRoot("two") as two:
        groups = [root.path.parent.name for root in (one, two)]

        for root, group in zip((one, two), groups, strict=True):
            assert f"/{group}/payload/init.scope" in root.control_groups()


def test_processes_that_are_left_in_a_group_are_ended_with_it() -> None:
    groups = control_groups.create("left")
    left = subprocess.Popen(control_groups.entered(groups, ["sleep", "600"]))
    wait_until(lambda: str(left.pid) in (groups[0] / "cgroup.procs").read_text())

    control_groups.remove(groups)

    assert left.wait() == -signal.SIGKILL
    assert not any(group.exists() for group in groups)


def test_the_root_of_a_process_that_was_killed_is_removed_later() -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=PROJECT, text=True, capture_output=True, check=False
    )
    place = Path(killed.stdout.strip())
    groups = control_groups.places(place.name)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert all(group.is_dir() for group in groups)

    remove_left()

    assert not any(left.exists() for left in (place, *groups))
