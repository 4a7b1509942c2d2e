"""The data directory: used by one agent at a time, and cleared of a dead process's files."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from arc_runtime.lock_holders import holder_of

_LOCK: Final = "lock"
_PASSING: Final = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class DataDirError(Exception):
    """The data directory cannot be used; the message is one line."""

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass
        """Another try may succeed without a change on this host."""


class DataDir:
    """The directory, locked while it is open.

    `bodies` holds the files of spooled responses, `temporary` those of running commands.
    """

    def __init__(self, path: Path) -> None:
        """Make and lock the directory, and clear temporary files. Raises DataDirError."""
        self.path = path
        self.bodies = path / "bodies"
        self.temporary = path / "tmp"
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            is_file = isinstance(error, FileExistsError)  # the system's words read oddly
            raise DataDirError(
                f"the data directory {path} cannot be used:"
                f" {'it is no directory' if is_file else error.strerror}",
                may_pass=is_passing(error),
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary.mkdir(exist_ok=True, mode=0o700)
            self.bodies.mkdir(exist_ok=True, mode=0o700)
            sync_directory(path)
        except OSError as error:
            is_taken = error.errno in (errno.EAGAIN, errno.EACCES) and error.filename is None
            reason = _taken(self._lock) if is_taken else f"cannot be used: {error.strerror}"
            os.close(self._lock)
            raise DataDirError(
                f"the data directory {path} {reason}", may_pass=is_taken or is_passing(error)
            ) from None

    def free(self) -> tuple[int, int | None]:
        """Return the free bytes and inodes of the disk; 0 and 0 when they cannot be read.

        The inodes are None on file systems that do not count them (btrfs and others).
        """
        try:
            found = os.statvfs(self.path)
        except OSError:
            return 0, 0
        return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None

    def close(self) -> None:
        """Unlock the directory for another agent."""
        os.close(self._lock)

    def __enter__(self) -> Self:
        """Return the directory."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the directory."""
        self.close()


def _taken(lock: int) -> str:
    """Return why a locked directory cannot be used, and the way out."""
    holder = holder_of(lock)
    by = f" ({holder})" if holder else ""
    return f"is used by another agent{by}; give a second agent its own by --data-dir"


def is_passing(error: OSError) -> bool:
    """Return True if an error may pass by itself, such as a full disk."""
    return error.errno in _PASSING


def sync_directory(path: Path) -> None:
    """Make creations, renames and removals in a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
