"""The audit reads a data directory from outside: raw SQL and files, none of the server's code."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

NOT_COMPARED = ("numbering", "sqlite_sequence")
"""Tables whose rows may differ without a client being able to tell."""
INLINE, BLOB, AWAITED, ERROR = 1, 2, 3, 4
"""The forms of bodies."""

_RULES = {
    "a terminal command has an instant of its end, and no other has": """
        SELECT command_id FROM commands
        WHERE (state IN ('SUCCEEDED', 'FAILED', 'EXPIRED')) <> (completed_at IS NOT NULL)""",
    "the state is one of the table": """
        SELECT command_id FROM commands WHERE state NOT IN (
            'PENDING_UPLOAD', 'PENDING', 'DISPATCHED', 'SUCCEEDED', 'FAILED', 'EXPIRED')""",
    "SUCCEEDED has a body, FAILED an error, nothing else a response": """
        SELECT c.command_id FROM commands AS c LEFT JOIN responses AS r ON r.command = c.seq
        WHERE coalesce(r.form, 0) NOT IN (
            SELECT value FROM json_each(CASE c.state
                WHEN 'SUCCEEDED' THEN '[1, 2]' WHEN 'FAILED' THEN '[4]' ELSE '[0]' END))""",
    "every command has params": """
        SELECT command_id FROM commands WHERE seq NOT IN (SELECT command FROM params)""",
    "params are awaited in PENDING_UPLOAD, and not once it is ready": """
        SELECT c.command_id FROM commands AS c JOIN params AS p ON p.command = c.seq
        WHERE (c.state = 'PENDING_UPLOAD' AND p.form <> 3)
           OR (c.state IN ('PENDING', 'DISPATCHED', 'SUCCEEDED') AND p.form NOT IN (1, 2))""",
    "what is dispatched has a lease that ends": """
        SELECT command_id FROM commands WHERE state = 'DISPATCHED'
        AND (lease_id IS NULL OR lease_expires_at IS NULL OR dispatched_at IS NULL)""",
    "what is ready has a place in the order": """
        SELECT command_id FROM commands
        WHERE state IN ('PENDING', 'DISPATCHED', 'SUCCEEDED') AND ready_order IS NULL
        AND NOT (state = 'PENDING' AND not_before IS NOT NULL)""",
    "what is pushed has an instant": """
        SELECT command_id FROM commands WHERE state = 'PENDING' AND is_push AND push_at IS NULL""",
    "no attempt above the most allowed": """
        SELECT command_id FROM commands WHERE attempt NOT BETWEEN 1 AND max_attempts""",
    "numbers given out are below the mark": """
        SELECT command_id FROM commands WHERE seq > (SELECT high FROM numbering)""",
    "every key has its command": """
        SELECT key FROM idempotency_keys WHERE command_seq IS NULL""",
}


def dump(data_dir: Path, scratch: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of the database; its files are left as they are, in any state."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for file in data_dir.glob("arc.db*"):
        shutil.copy(file, scratch)
    with closing(sqlite3.connect(scratch / "arc.db")) as database:
        tables = [name for (name,) in database.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name"
        )]  # fmt: skip
        return {
            table: sorted(database.execute(f"SELECT * FROM {table}").fetchall(), key=repr)
            for table in tables
            if table not in NOT_COMPARED
        }


def audit(data_dir: Path, *, are_sealed: bool = False) -> list[str]:
    """Return what is wrong in a data directory that no process uses."""
    with closing(sqlite3.connect(data_dir / "arc.db")) as database:
        return list(problems(database, data_dir / "blobs", are_sealed=are_sealed))


def problems(
    database: sqlite3.Connection,
    blobs: Path,
    *,
    is_thorough: bool = True,
    are_sealed: bool = False,
) -> Iterator[str]:
    """Yield what is wrong in an open database, and with the blobs that it refers to.

    `are_sealed`: these were all handed in by requests that were answered.
    """
    check = "integrity_check" if is_thorough else "quick_check"
    for (verdict,) in database.execute(f"PRAGMA {check}"):
        if verdict != "ok":
            yield f"{check}: {verdict}"
    for row in database.execute("PRAGMA foreign_key_check"):
        yield f"foreign key: {row}"
    for rule, query in _RULES.items():
        for row in database.execute(query):
            yield f"not true of {row[0]}: {rule}"
    for table in ("params", "responses"):
        for path, size in database.execute(
            f"SELECT CAST(data AS TEXT), size FROM {table} WHERE form = {BLOB}"
        ):
            found = blob_file(blobs, path)
            if found is None:
                yield f"{table}: there is no blob {path}"
            elif are_sealed and found.suffix != ".sealed":
                yield f"{table}: {path} may still be replaced"
            elif found.stat().st_size != size:
                yield f"{table}: {path} has {found.stat().st_size} bytes of {size}"


def blob_file(blobs: Path, path: str) -> Path | None:
    """The file of a blob, None when there is none."""
    for suffix in ("sealed", "blob"):
        file = blobs / f"{path}.{suffix}"
        if file.exists():
            return file
    return None
