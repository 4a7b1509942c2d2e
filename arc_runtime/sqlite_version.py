"""The version of SQLite that Python is linked with, and whether it can damage a database.

Before 3.51.3 (and the corrections 3.50.7 and 3.44.6 of older branches) two connections that write
or checkpoint a write-ahead log at the same instant can damage the database (sqlite.org/wal.html,
"The WAL-Reset Bug"). ARC's programs write and checkpoint by one connection only.
"""

from __future__ import annotations

import sqlite3
from typing import Final

Version = tuple[int, int, int]

_SOUND_SINCE: Final[Version] = (3, 51, 3)
_CORRECTIONS: Final[tuple[Version, ...]] = ((3, 50, 7), (3, 44, 6))
HINT: Final = (
    "open the database with no other program while the server runs, or install SQLite 3.51.3"
)


def version() -> Version:
    """Return the version in use."""
    major, minor, patch = sqlite3.sqlite_version_info
    return major, minor, patch


def can_damage(found: Version) -> bool:
    """Return True if two connections of this version can damage a database."""
    if found >= _SOUND_SINCE:
        return False
    return not any(found[:2] == sound[:2] and found >= sound for sound in _CORRECTIONS)
