"""The contents of a database file: its epoch, its counts, its blobs, and how sound it is.

All of it reads a file that no process has open, such as a snapshot.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from arc_server.store.engine import schema
from arc_server.store.operations import bodies

_COUNTED: Final = ("commands", "deployments", "targets", "agents", "tokens", "credentials")
_COUNTS: Final = """
SELECT deployment_id, live_commands, open_uploads, stored_bytes, idempotency_keys, agents
FROM usage
"""
RECOUNT: Final = """
SELECT deployment_id, sum(live), sum(uploads), sum(bytes), sum(keys), sum(agents)
FROM (
    SELECT c.deployment_id, c.completed_at IS NULL AS live, c.state = 'PENDING_UPLOAD' AS uploads,
        coalesce(CASE
            WHEN p.form <> 3 THEN p.size
            WHEN c.state <> 'PENDING_UPLOAD' THEN p.arrived
            ELSE max(coalesce(p.size, 0), p.arrived) END, 0)
            + coalesce(r.size, 0) AS bytes, 0 AS keys, 0 AS agents
    FROM commands AS c
    LEFT JOIN params AS p ON p.command = c.seq LEFT JOIN responses AS r ON r.command = c.seq
    UNION ALL SELECT deployment_id, 0, 0, 0, 1, 0 FROM idempotency_keys
    UNION ALL SELECT deployment_id, 0, 0,
        length(registration) + coalesce(length(schemas), 0), 0, 1 FROM agents
)
GROUP BY deployment_id
"""
"""Counts anew what each deployment uses: the columns of `usage`, in order. `form` 3 is params that
are awaited."""
BLOB_SUFFIXES: Final = (".sealed", ".blob")
"""In the order in which the blob store looks for them."""


class NamedBlob(NamedTuple):
    """A blob that the database names."""

    path: str
    size: int | None
    is_awaited: bool
    """True for params whose upload was not reported yet: they may not be there."""


@contextmanager
def snapshot_file(path: str) -> Generator[Path]:
    """Yield the file of a snapshot, and remove it afterwards. Raises OSError."""
    try:
        yield Path(path)
    finally:
        Path(path).unlink(missing_ok=True)


@contextmanager
def read_database(path: Path) -> Generator[sqlite3.Connection]:
    """Open a database file to read it; it stays as it is. Raises sqlite3.Error."""
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        yield connection


def counts_of(database: sqlite3.Connection) -> Mapping[str, int]:
    """Return how many rows the tables have that an operator knows."""
    count = "SELECT count(*) FROM "
    return {table: database.execute(count + table).fetchone()[0] for table in _COUNTED}


def epoch_of(database: sqlite3.Connection) -> str:
    """Return the epoch of a database."""
    return database.execute("SELECT epoch FROM epochs ORDER BY number DESC LIMIT 1").fetchone()[0]


def blobs_of(database: sqlite3.Connection) -> Iterator[NamedBlob]:
    """Yield the blobs that params and responses name."""
    for table in ("params", "responses"):
        for form, path, size in database.execute(
            f"SELECT form, CAST(data AS TEXT), size FROM {table}"  # noqa: S608
            " WHERE form IN (?, ?)",
            (bodies.BLOB, bodies.AWAITED),
        ):
            yield NamedBlob(path, size, form == bodies.AWAITED)


def problems_of(database: sqlite3.Connection, *, is_deep: bool) -> Iterator[str]:
    """Yield what is wrong in a database, a line each."""
    structure = list(structure_problems(database, is_deep=is_deep))
    yield from structure
    if is_deep and not structure:
        yield from (wrong for _, wrong in usage_problems(database))
        yield from damaged_bodies(database)


def structure_problems(database: sqlite3.Connection, *, is_deep: bool) -> Iterator[str]:
    """Yield what makes a database unusable, a line each."""
    if schema.version_of(database) != schema.newest():
        yield f"its schema is {schema.version_of(database)}, not {schema.newest()}"
        return
    for (verdict,) in database.execute(f"PRAGMA {'integrity' if is_deep else 'quick'}_check"):
        if verdict != "ok":
            yield f"database: {verdict}"
    for table, row, *_ in database.execute("PRAGMA foreign_key_check"):
        yield f"database: row {row} of {table} refers to a row that is not there"


def damaged_bodies(database: sqlite3.Connection) -> Iterator[str]:
    """Yield the bodies that are not what was stored, a line each. The rest is of use without."""
    for table in ("params", "responses"):
        for command, form, data, size, checksum in database.execute(
            f"SELECT command, form, data, size, checksum FROM {table}"  # noqa: S608
        ):
            if bodies.checksum(form, data, size) != checksum:
                yield f"database: the {table} of command number {command} are damaged"


def usage_problems(database: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    """Yield the deployments whose counts for quotas are not what a recount finds, with a line."""
    recounted = {name: counts for name, *counts in database.execute(RECOUNT)}
    for name, *counts in database.execute(_COUNTS):
        found = recounted.pop(name, [0] * len(counts))
        if counts != found:
            wrong = f"database: the usage of deployment {name!r} is {found}, and noted as {counts}"
            yield name, wrong
    for name, found in recounted.items():
        yield name, f"database: the usage of deployment {name!r} is {found}, and not noted"


def blob_file(blobs: Path, path: str) -> Path | None:
    """Return the file of a blob, None when there is none."""
    for suffix in BLOB_SUFFIXES:
        file = blobs / f"{path}{suffix}"
        if file.is_file():
            return file
    return None
