"""Directories of data: made durable, and kept by their owner.

A name survives a power cut once its directory is synced.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path


def make_directory(directory: Path) -> None:
    """Make a directory, and those missing above it, for its owner only; durable on return.

    An existing directory is made durable too: the process that made it may have died before that.
    Raises OSError.
    """
    if not directory.parent.exists():
        make_directory(directory.parent)
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:  # the system's words would be `File exists`
        what = os.strerror(errno.ENOTDIR)
        raise NotADirectoryError(errno.ENOTDIR, what, str(directory)) from None
    with suppress(PermissionError):  # then nothing was made there
        sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def kept_by_owner(directory: Path) -> Generator[None]:
    """Give the files that root makes in a directory of another user to that user, at the end.

    A service could not read them otherwise. Does nothing for other users than root, or if there is
    no directory yet. Raises OSError.
    """
    if os.geteuid() != 0 or not directory.exists():
        yield
        return
    owner = directory.stat()
    try:
        yield
    finally:
        if owner.st_uid != 0:
            for place, folders, files in os.walk(directory):
                for name in (*folders, *files):
                    _give(Path(place, name), owner)


def _give(path: Path, owner: os.stat_result) -> None:
    with suppress(FileNotFoundError):
        if path.lstat().st_uid == 0:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
