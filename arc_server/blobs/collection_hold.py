"""The hold on the collection of blobs: while a backup copies blobs, no process removes any.

Both sides lock a file beside the blobs, so that the hold ends with the process of the backup.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

NAME: Final = ".hold"


@contextmanager
def hold_collection(root: Path) -> Generator[None]:
    """Let no blob below `root` be collected inside the context. Wait for a pass in progress."""
    with _opened(root) as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield


@contextmanager
def collection_pass(root: Path) -> Generator[bool]:
    """Yield True if blobs below `root` may be removed inside the context; False during a backup."""
    with _opened(root) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def _opened(root: Path) -> Generator[int]:
    root.mkdir(mode=0o700, exist_ok=True)  # no server may have run yet
    handle = os.open(root / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)
