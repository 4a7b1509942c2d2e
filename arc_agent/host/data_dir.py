"""The agent's directory: one agent each, nothing left over from a process that died."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_LOCK: Final = "lock"
_PASSING: Final = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class DataDirError(Exception):
    """A directory that cannot be used; the message is one clear line."""

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass
        """Whether another try may succeed with nobody doing anything here."""


class DataDir:
    """The directory, locked while it is open.

    `bodies` holds what the spool refers to, `temporary` what belongs to commands that run now.
    """

    def __init__(self, path: Path) -> None:
        """Make it if need be, lock it, clear what a dead process left. Raises DataDirError."""
        self.path = path
        self.bodies = path / "bodies"
        self.temporary = path / "tmp"
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataDirError(
                f"the data directory {path} cannot be used: {error.strerror}",
                may_pass=is_passing(error),
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary.mkdir(exist_ok=True, mode=0o700)
            self.bodies.mkdir(exist_ok=True, mode=0o700)
            sync_directory(path)
        except OSError as error:
            os.close(self._lock)
            is_taken = error.errno in (errno.EAGAIN, errno.EACCES) and error.filename is None
            reason = "is used by another agent" if is_taken else f"cannot be used: {error.strerror}"
            raise DataDirError(
                f"the data directory {path} {reason}", may_pass=is_taken or is_passing(error)
            ) from None

    def free(self) -> tuple[int, int | None]:
        """The bytes and the files that the disk has left for us, nothing when it cannot be asked.

        None when it does not count files (btrfs and others).
        """
        try:
            found = os.statvfs(self.path)
        except OSError:
            return 0, 0
        return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None

    def close(self) -> None:
        """Let another agent in."""
        os.close(self._lock)

    def __enter__(self) -> Self:
        """The directory itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()


def is_passing(error: OSError) -> bool:
    """Whether an error may be gone at the next try: a full disk, above all."""
    return error.errno in _PASSING


def sync_directory(path: Path) -> None:
    """Make what was created, renamed or removed in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
