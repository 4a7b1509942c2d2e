"""A run of one statement on Postgres: its own connection, a read-only transaction, and a cursor.

Messages of asyncpg about a DSN are dropped, because they might quote it.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any, Final, cast

from arc_agent.config.declared_handlers import SqlSection
from arc_agent.handlers.context import CommandFailed, Context
from arc_agent.handlers.declared.placeholders import INVALID_PARAMS
from arc_agent.handlers.declared.rows import SQL_ERROR, RowWriter
from arc_agent.handlers.declared.statements import Statement
from arc_agent.host.threads import in_thread
from arc_runtime.startup.late_module import late_module

_pg: Any = late_module("asyncpg")  # heavy, and only a run needs it

DATABASE_UNREACHABLE: Final = "DATABASE_UNREACHABLE"
_CONNECT_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 2.0
"""The time limit for closing a connection; the query is cancelled first."""
_BATCH_ROWS: Final = 500
_INT_TYPES: Final = ("int2", "int4", "int8", "oid")


async def run(
    section: SqlSection, dsn: str, statement: Statement, values: Mapping[str, Any], ctx: Context
) -> Any:
    """Run a statement; return a file with the rows, or the number of changed rows.

    A cancellation also cancels the query in the database. Raises CommandFailed.
    """
    connection = await _connected(section, dsn)
    try:
        async with connection.transaction(readonly=not section.write):
            return await _fetched(connection, section, statement, values, ctx)
    except _pg.PostgresError as error:
        if getattr(error, "message", None) is None:  # asyncpg could not encode a value
            raise CommandFailed(INVALID_PARAMS, "params: a value of another type") from None
        raise CommandFailed(SQL_ERROR, f"{error.sqlstate}: {error.message}") from None
    except (_pg.InterfaceError, OSError) as error:
        raise CommandFailed(
            DATABASE_UNREACHABLE, f"the connection broke: {type(error).__name__}"
        ) from None
    finally:
        await _closed(connection)


async def _connected(section: SqlSection, dsn: str) -> Any:
    """Return a connection. Raises CommandFailed, which never quotes the DSN."""
    milliseconds = str(max(1, round(section.timeout_seconds * 1000)))
    try:
        connection: Any = await _pg.connect(
            dsn,
            timeout=min(_CONNECT_SECONDS, section.timeout_seconds),
            server_settings={
                "application_name": "arc-agent",
                "default_transaction_read_only": "off" if section.write else "on",
                "statement_timeout": milliseconds,
                "lock_timeout": milliseconds,
                "idle_in_transaction_session_timeout": milliseconds,
            },
        )
    except _pg.PostgresError as error:
        raise CommandFailed(
            DATABASE_UNREACHABLE, f"the database refuses: {error.sqlstate}"
        ) from None
    except (OSError, TimeoutError) as error:
        raise CommandFailed(
            DATABASE_UNREACHABLE, f"the database cannot be reached: {type(error).__name__}"
        ) from None
    except Exception as error:  # a malformed DSN raises ValueError, and others
        raise CommandFailed(
            DATABASE_UNREACHABLE, f"the DSN cannot be used: {type(error).__name__}"
        ) from None
    return connection


async def _fetched(
    connection: Any,
    section: SqlSection,
    statement: Statement,
    values: Mapping[str, Any],
    ctx: Context,
) -> Any:
    """Prepare the statement, bind the values, and read the rows."""
    for kind in ("json", "jsonb"):
        await connection.set_type_codec(
            kind, schema="pg_catalog", encoder=json.dumps, decoder=json.loads
        )
    prepared = await connection.prepare(statement.numbered)
    arguments = [
        _bound(values[name], kind.name, name)
        for name, kind in zip(statement.names, prepared.get_parameters(), strict=True)
    ]
    columns = [attribute.name for attribute in prepared.get_attributes()]
    if not columns:
        await prepared.fetch(*arguments)
        return {"rows": _changed(prepared.get_statusmsg())}
    path = ctx.directory / "rows"
    writer = RowWriter(
        path,
        columns,
        section.format,
        max_rows=section.max_rows,
        max_bytes=section.max_result_bytes,
    )
    with writer:  # in_thread waits for its thread: no write follows the close
        cursor = await prepared.cursor(*arguments)
        while rows := await cursor.fetch(_BATCH_ROWS):
            batch = [tuple(row) for row in rows]
            await in_thread(partial(writer.add, batch), "rows")
        await in_thread(writer.finish, "rows")
    return path


async def _closed(connection: Any) -> None:
    """Close a connection in order if that is quick, else at once; also when cancelled."""
    closing = asyncio.ensure_future(connection.close(timeout=_CLOSE_SECONDS))
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await asyncio.wait({closing}, timeout=_CLOSE_SECONDS)
        raise
    except Exception:
        connection.terminate()


def _changed(status: str) -> int:
    """Return the number of rows in a status such as `INSERT 0 3` or `UPDATE 3`."""
    last = status.rpartition(" ")[2]
    return int(last) if last.isdecimal() else 0


def _bound(value: Any, kind: str, name: str) -> Any:
    """Return a JSON value in asyncpg's form for a type of Postgres. Raises CommandFailed."""
    try:
        if isinstance(value, list):
            items = cast("list[Any]", value)
            return [_bound(each, kind.removesuffix("[]"), name) for each in items]
        if value is None:
            return None
        if kind in ("json", "jsonb"):
            return value
        if kind in _INT_TYPES and isinstance(value, float) and value.is_integer():
            return int(value)
        if kind == "numeric":
            return Decimal(str(value))
        if not isinstance(value, str):
            return str(value) if kind in ("text", "varchar", "bpchar") else value
        match kind:
            case "timestamptz" | "timestamp":
                return datetime.fromisoformat(value)
            case "date":
                return date.fromisoformat(value)
            case "time" | "timetz":
                return time.fromisoformat(value)
            case "bytea":
                return b64decode(value, validate=True)
            case _:
                return value
    except (ValueError, InvalidOperation):
        raise CommandFailed(INVALID_PARAMS, f"params.{name}: is no {kind}") from None
