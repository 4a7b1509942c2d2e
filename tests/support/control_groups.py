"""A control group of its own for each container that this host boots.

systemd-nspawn puts a container's units below the control group that it runs in itself. Two that
run in one group, as tests in parallel would start them, boot a systemd each upon one tree: the
one removes a unit's empty group while the other starts a process in it, and that start fails
with "Failed at step CGROUP".
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Final

from tests.support.waiting import wait_until

ENTER: Final = """\
while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit; shift; done
shift
exec "$@"
"""
"""A program of the shell: enter the groups before `--`, and become the program after it."""


def entered(groups: list[Path], argv: list[str]) -> list[str]:
    """Return the command that runs a program in control groups."""
    return ["sh", "-c", ENTER, "enter", *map(str, groups), "--", *argv]


def create(name: str) -> list[Path]:
    """Create a group below this process's own, in each hierarchy that systemd keeps units in."""
    groups = places(name)
    for group in groups:
        group.mkdir()
    return groups


def places(name: str) -> list[Path]:
    """The directories of the groups that `create` makes."""
    return [directory / name for directory in _own_groups()]


def remove(groups: list[Path]) -> None:
    """End all processes that are left in groups, and remove the groups with those in them."""
    wait_until(lambda: _all_have_ended(groups))
    for group in groups:  # of one that is not there the tree is empty
        for each in _tree(group):
            each.rmdir()


def _all_have_ended(groups: list[Path]) -> bool:
    """Return True if no process is left; kill those that are."""
    left = [pid for group in groups for each in _tree(group) for pid in _processes(each)]
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return not left


def _processes(group: Path) -> list[int]:
    """The processes of a group itself; none when systemd has just removed it."""
    try:
        return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _tree(group: Path) -> list[Path]:
    """A group and those in it, the innermost first."""
    return [Path(place) for place, _, _ in os.walk(group, topdown=False)]


def _own_groups() -> list[Path]:
    """The directories of this process's groups: of version 2, and of version 1 the named one."""
    mounted = _hierarchies()
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    entries = [line.split(":", 2)[1:] for line in lines]
    return [mounted[name] / path.lstrip("/") for name, path in entries if name in mounted]


def _hierarchies() -> dict[str, Path]:
    """Where the hierarchies that systemd keeps units in are mounted; version 2 has no name."""
    mounted: dict[str, Path] = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2":
            mounted[""] = Path(place)
        elif kind == "cgroup" and "name=systemd" in options.split(","):
            mounted["name=systemd"] = Path(place)
    return mounted
