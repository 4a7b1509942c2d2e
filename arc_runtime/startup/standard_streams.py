"""The standard streams of a program are open, also where its parent has closed them.

The first file or socket that a program opens would take the number of a closed one: what is meant
for standard error then goes to a client, and uvloop ends the process.
"""

from __future__ import annotations

import os
import sys

_NAMES = ("stdin", "stdout", "stderr")


def open_standard_streams() -> None:
    """Open /dev/null for each standard stream that is closed. Call it first of all."""
    for descriptor, name in enumerate(_NAMES):
        if _is_open(descriptor):
            continue
        opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        os.set_inheritable(opened, True)
        mode = "r" if name == "stdin" else "w"
        stream = open(opened, mode, encoding="utf-8", closefd=False)  # noqa: SIM115  # it stays
        setattr(sys, name, stream)


def _is_open(descriptor: int) -> bool:
    """Return True if a file descriptor is open."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
