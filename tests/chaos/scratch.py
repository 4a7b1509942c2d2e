"""The scratch directory lies in memory if it can: a killed process takes nothing from the cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEMORY = Path("/dev/shm")


@contextmanager
def in_memory(otherwise: Path) -> Iterator[Path]:
    """A directory in memory, where fsync costs nothing; `otherwise` where there is none."""
    if not os.access(_MEMORY, os.W_OK | os.X_OK):
        yield otherwise
        return
    directory = Path(tempfile.mkdtemp(prefix="arc-chaos-", dir=_MEMORY))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
