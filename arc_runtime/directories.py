"""Directories of data: made durable, and kept by their owner.

A name survives a power cut once its directory is synced.
"""

from __future__ import annotations

import errno
import os
import stat
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
            give(directory, owner.st_uid, owner.st_gid)


def give(directory: Path, uid: int, gid: int) -> None:
    """Give a directory, and all in it that is root's, to a user. Raises OSError.

    The user may put links there meanwhile: none is followed, and a file that has another name
    elsewhere stays root's.
    """
    for _, folders, files, handle in os.fwalk(directory.resolve(), topdown=False):
        for name in (*folders, *files):
            with suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=handle, follow_symlinks=False)
                is_shared = found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode)
                if found.st_uid == 0 and not is_shared:
                    os.chown(name, uid, gid, dir_fd=handle, follow_symlinks=False)
        if os.fstat(handle).st_uid == 0:
            os.fchown(handle, uid, gid)
