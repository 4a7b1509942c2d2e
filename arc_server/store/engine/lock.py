"""One server for each data directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from arc_runtime.lock_holders import holder_of
from arc_server.store.engine.refusals import StoreLocked


class DirectoryLock:
    """A directory lock is an exclusive lock on a file. It ends with its process in any case."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> DirectoryLock:
        """Lock `path`, a file of its own. Raises StoreLocked at once if another process has it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = holder_of(descriptor)
            os.close(descriptor)
            raise StoreLocked(
                f"{path.parent}: another server uses this data directory"
                f"{f' ({holder})' if holder else ''}"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def release(self) -> None:
        """Release the lock. Does nothing the second time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
