"""The disk shim builds the shared library of disk.c and speaks to it from inside a process."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("disk.c")
FLAGS = ("-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror")
SHIM_VARIABLE = "LD_PRELOAD"


def why_not() -> str:
    """Why it cannot be used here; empty when it can."""
    if shutil.which("gcc") is None:
        return "no gcc: the disk shim (tests/chaos/disk.c) cannot be built"
    if not sysconfig.get_platform().startswith("linux"):
        return "not Linux: the disk shim intercepts glibc's calls"
    return ""


def build(directory: Path) -> Path:
    """Compile it; the library's path."""
    library = directory / "disk.so"
    subprocess.run(
        ["gcc", *FLAGS, "-o", str(library), str(SOURCE), "-ldl", "-pthread"],
        check=True,
    )
    return library


class Disk:
    """The shim that this very process was started with."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.disk_fault.restype = ctypes.c_long

    def watch(self, root: Path, log: Path | None) -> None:
        """Log what happens below `root` from now on; only notice it, without a log."""
        file = b"" if log is None else bytes(log)
        self._library.disk_watch(bytes(root), file)

    def note(self, remark: dict[str, Any]) -> None:
        """A remark, in the order of what is logged."""
        self._library.disk_note(json.dumps(remark).encode())

    def fail(self, kind: str, number: int, n: int, *, ever: bool = False, suffix: str = "") -> None:
        """Let the N-th `write` or `sync` from now on fail, for files whose names end so."""
        self._library.disk_fault(
            int(kind == "sync"), number, ctypes.c_long(n), int(ever), suffix.encode()
        )

    def has_failed(self) -> bool:
        """Return True if the fault has come, and let no more come."""
        return self._library.disk_fault(0, 0, ctypes.c_long(0), 0, b"") <= 0
