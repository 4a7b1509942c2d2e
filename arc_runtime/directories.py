"""Durable directories survive a power cut: a name is durable once its directory is synced."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def make_directory(directory: Path) -> None:
    """Make a directory, and those missing above it, for its owner only; durable on return.

    An existing directory is made durable too: the process that made it may have died before that.
    Raises OSError.
    """
    if not directory.parent.exists():
        make_directory(directory.parent)
    directory.mkdir(mode=0o700, exist_ok=True)
    with suppress(PermissionError):  # then nothing was made there
        sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
