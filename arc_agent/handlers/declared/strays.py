"""Ending what a program has left behind, also where it went into a session of its own.

Every program of an exec handler has a mark of its run in its environment, and so has whatever it
starts. Who clears its environment, or becomes another user, is not found: only a control group
holds these (docs/hardening.md).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

MARK: Final = "ARC_RUN"
"""The variable that holds the mark."""
_ROUNDS: Final = 10
"""Who forks while it is looked for is found in the next round."""
_PROCESSES: Final = Path("/proc")


def end_strays(mark: str) -> int:
    """Kill all processes that have the mark; how many. Blocks for as long as /proc takes."""
    ended: set[int] = set()
    for _ in range(_ROUNDS):
        found = {pid for pid in _processes() if _end(pid, mark)}
        if found <= ended:
            break
        ended |= found
    return len(ended)


def _processes() -> Iterator[int]:
    """The ids of all processes that show."""
    with suppress(OSError):
        for name in os.listdir(_PROCESSES):
            if name.isdecimal():
                yield int(name)


def _end(pid: int, mark: str) -> bool:
    """Kill a process if it has the mark. Its id cannot become another's meanwhile."""
    if not _has_mark(pid, mark):
        return False
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not _has_mark(pid, mark):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _has_mark(pid: int, mark: str) -> bool:
    """Whether a process was started with the mark; of others' processes that cannot be seen."""
    try:
        environment = (_PROCESSES / str(pid) / "environ").read_bytes()
    except OSError:
        return False
    return f"{MARK}={mark}".encode() in environment.split(b"\0")
