"""Strays: processes that a program leaves behind, even in another session.

The environment of a program has a mark of its run, which all processes that it starts inherit. A
process that clears its environment, or becomes another user, is not found: only a control group
holds it (docs/hardening.md).
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
"""A process that forks during a round is found in the next one."""
_PROCESSES: Final = Path("/proc")


def end_strays(mark: str) -> int:
    """Kill all processes with the mark; return their number. Blocks."""
    ended: set[int] = set()
    for _ in range(_ROUNDS):
        found = {pid for pid in _processes() if _end(pid, mark)}
        if found <= ended:
            break
        ended |= found
    return len(ended)


def _processes() -> Iterator[int]:
    """Yield the ids of all visible processes."""
    with suppress(OSError):
        for name in os.listdir(_PROCESSES):
            if name.isdecimal():
                yield int(name)


def _end(pid: int, mark: str) -> bool:
    """Kill a process if it has the mark; its id cannot pass to another process meanwhile."""
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
    """Return True if a process was started with the mark. False for processes of other users."""
    try:
        environment = (_PROCESSES / str(pid) / "environ").read_bytes()
    except OSError:
        return False
    return f"{MARK}={mark}".encode() in environment.split(b"\0")
