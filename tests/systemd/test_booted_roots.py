"""Roots that are booted at once share nothing, and leave nothing."""

from __future__ import annotations

import signal
import subprocess

import pytest

from tests.support import control_groups
from tests.support.booted_root import BootedRoot
from tests.support.waiting import wait_until

pytestmark = pytest.mark.systemd


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
