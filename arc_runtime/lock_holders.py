"""Find the process that holds the lock on a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")


def holder_of(descriptor: int) -> str | None:
    """Return the process that holds the flock on an open file: `process 611, arc-agent`.

    None if the kernel does not show it: the process may be in another container.
    """
    found = os.fstat(descriptor)
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        locks = (_PROC / "locks").read_text().splitlines()
    except OSError:
        return None
    for line in locks:  # "6: FLOCK  ADVISORY  WRITE 611 fe:00:464 0 EOF", proc_locks(5)
        match line.split():
            case [_, "FLOCK", _, _, pid, place, *_] if place == device and int(pid) > 0:
                return _named(pid)
            case _:
                continue
    return None


def _named(pid: str) -> str:
    """Return a process with the name of its program, if it is readable."""
    try:
        program = (_PROC / pid / "comm").read_text().strip()
    except OSError:
        return f"process {pid}"
    return f"process {pid}, {program}" if program.isprintable() else f"process {pid}"
