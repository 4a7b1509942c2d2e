"""The note of the last backup, in the data directory: a monitoring system asks how old it is."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final

NOTE: Final = "last-backup"
"""The name of the note in the data directory."""
_MAX_BYTES: Final = 64


def note_backup(data_dir: Path, taken_at: datetime) -> None:
    """Note when a backup was taken. Blocks. Raises OSError; the former note stays then.

    Root may take a backup, and the server reads the note: so it is not for its owner alone.
    """
    fresh = data_dir / f".{NOTE}.{os.getpid()}"
    try:
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with open(handle, "w", encoding="ascii") as file:
            file.write(taken_at.isoformat())
        fresh.replace(data_dir / NOTE)
    finally:
        fresh.unlink(missing_ok=True)


def last_backup_at(data_dir: Path) -> datetime | None:
    """Return when the last backup was taken; None if none was, or its note is broken. Blocks."""
    with suppress(OSError, ValueError), open(data_dir / NOTE, "rb") as file:
        return datetime.fromisoformat(file.read(_MAX_BYTES).decode("ascii"))
    return None
