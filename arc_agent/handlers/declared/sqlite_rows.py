"""A run of one statement on a SQLite file, which can be interrupted.

Unless the section may write, the file is opened read-only, `query_only` is set, and an authorizer
refuses all but reads.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from arc_agent.config.declared_handlers import SqlSection
from arc_agent.handlers.context import CommandFailed, Context
from arc_agent.handlers.declared.placeholders import INVALID_PARAMS
from arc_agent.handlers.declared.rows import SQL_ERROR, RowWriter
from arc_agent.handlers.declared.statements import Statement

_BATCH_ROWS: Final = 500
_STEPS: Final = 2_000
"""Steps of SQLite between two checks for a cancellation: well below a millisecond."""
_LOCK_SECONDS: Final = 0.1
"""The time that SQLite waits for a lock between two checks for a cancellation."""
_READ: Final = (
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
)
_NEVER: Final = (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_PRAGMA)
"""Refused even for writers: they reach other files, or change the settings made here."""
_BAD_FUNCTIONS: Final = ("load_extension", "fts3_tokenizer", "writefile", "readfile", "edit")


def run(
    section: SqlSection, file: Path, statement: Statement, values: Mapping[str, Any], ctx: Context
) -> Any:
    """Run a statement; return a file with the rows, or the number of changed rows. Blocks.

    Raises CommandFailed.
    """
    try:
        with contextlib.closing(_opened(file, section, ctx)) as db:
            begin = "BEGIN IMMEDIATE" if section.write else "BEGIN"
            _patiently(lambda: db.execute(begin), ctx)
            _guard(db, section)
            bound = {name: values[name] for name in statement.names}
            cursor = _patiently(lambda: db.execute(statement.named, bound), ctx)
            if cursor.description is None:
                db.set_authorizer(None)
                changed = cursor.rowcount
                db.execute("COMMIT")
                return {"rows": max(0, changed)}
            path = ctx.directory / "rows"
            columns = [str(each[0]) for each in cursor.description]
            with RowWriter(
                path,
                columns,
                section.format,
                max_rows=section.max_rows,
                max_bytes=section.max_result_bytes,
            ) as writer:
                for rows in _batches(cursor):
                    writer.add(rows)
                writer.finish()
            db.set_authorizer(None)
            db.execute("COMMIT")
            return path
    except (OverflowError, UnicodeEncodeError):
        raise CommandFailed(INVALID_PARAMS, "params: a value that SQLite cannot hold") from None
    except sqlite3.Error as error:
        if ctx.is_cancelled:
            raise CommandFailed(SQL_ERROR, "the query was interrupted") from None
        raise CommandFailed(SQL_ERROR, str(error)) from None


def _opened(file: Path, section: SqlSection, ctx: Context) -> sqlite3.Connection:
    """Open a connection with the section's rights. Raises sqlite3.Error."""
    mode = "rw" if section.write else "ro"
    db = sqlite3.connect(
        f"file:{quote(str(file.expanduser().absolute()))}?mode={mode}",
        uri=True,
        isolation_level=None,
        timeout=_LOCK_SECONDS,
        check_same_thread=False,
    )
    db.text_factory = _text
    db.set_progress_handler(lambda: ctx.is_cancelled, _STEPS)
    _patiently(lambda: db.execute("PRAGMA trusted_schema=OFF"), ctx)
    if not section.write:
        _patiently(lambda: db.execute("PRAGMA query_only=ON"), ctx)
    db.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max(1_000_000, section.max_result_bytes))
    return db


def _text(data: bytes) -> str:
    """Decode a text; replace bytes that are not UTF-8."""
    return data.decode("utf-8", "replace")


def _guard(db: sqlite3.Connection, section: SqlSection) -> None:
    """Set an authorizer that refuses actions beyond the section's rights.

    A table-valued function (`json_each`) declares a table at its first use, which SQLite reports as
    an update of its schema. `mode=ro` refuses a real update.
    """

    def judge(action: int, one: str | None, two: str | None, *_: object) -> int:
        is_bad_function = (
            action == sqlite3.SQLITE_FUNCTION and (two or one or "").lower() in _BAD_FUNCTIONS
        )
        is_declaring = action == sqlite3.SQLITE_UPDATE and one == "sqlite_master"
        is_allowed = action not in _NEVER if section.write else action in _READ or is_declaring
        if action == sqlite3.SQLITE_TRANSACTION:
            is_allowed = False
        return sqlite3.SQLITE_OK if is_allowed and not is_bad_function else sqlite3.SQLITE_DENY

    db.set_authorizer(judge)


def _batches(cursor: sqlite3.Cursor) -> Iterator[list[Any]]:
    """Yield the rows in batches."""
    while rows := cursor.fetchmany(_BATCH_ROWS):
        yield rows


def _patiently(call: Callable[[], sqlite3.Cursor], ctx: Context) -> sqlite3.Cursor:
    """Repeat a call while another process holds the lock, until the run is cancelled."""
    while True:
        try:
            return call()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or ctx.is_cancelled:
                raise
            time.sleep(_LOCK_SECONDS)
