"""Handlers that query a database: one statement of the configuration, with bound params."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from arc_agent.config.declared_handlers import SqlSection
from arc_agent.handlers.context import CommandFailed, Context
from arc_agent.handlers.declared import postgres_rows, sqlite_rows
from arc_agent.handlers.declared.placeholders import Params, check_bounded, declare
from arc_agent.handlers.declared.statements import BadStatement, Statement, read_statement
from arc_agent.handlers.no_descriptors import put_off
from arc_agent.handlers.registry import UNTYPED, Handler, HandlerError
from arc_agent.host.threads import in_thread
from arc_runtime.systemd import credential

_GRACE_SECONDS: Final = 5.0
"""The time limit for interrupting a query and closing its connection."""
_MAX_DSN_BYTES: Final = 16 * 1024
_SQLITE_TYPES: Final = frozenset({"string", "integer", "number", "boolean", "null"})


def sql_handler(name: str, section: SqlSection) -> Handler:
    """Return the handler of a section of `handlers.sql`, without a connection.

    Raises HandlerError.
    """
    key = f"handlers.sql.{name}"
    is_postgres = _is_postgres(section, key)
    params = declare(section.params, f"{key}.params")
    statement = _statement(section, params, key, is_postgres=is_postgres)
    idempotent = not section.write if section.idempotent is None else section.idempotent
    whole_numbers = {
        name for name, param in params.by_name.items() if param.schema.types == ("integer",)
    }

    async def run(params: Mapping[str, Any], ctx: Context) -> Any:
        values = {
            name: int(value) if name in whole_numbers and isinstance(value, float) else value
            for name, value in params.items()
        }
        if section.sqlite is None:
            dsn = await in_thread(lambda: _dsn(section), "dsn")
            return await postgres_rows.run(section, dsn, statement, values, ctx)
        file = section.sqlite
        return await in_thread(lambda: sqlite_rows.run(section, file, statement, values, ctx), name)

    return Handler(
        name=name,
        call=run,
        description=section.description,
        timeout_seconds=section.timeout_seconds,
        idempotent=idempotent,
        concurrency=section.concurrency,
        params_type=UNTYPED,
        params_name="params",
        read_params=params.read,
        params_schema=params.advertised,
        context_name="ctx",
        is_async=True,
        origin="handlers.sql",
        grace_seconds=_GRACE_SECONDS,
    )


def _is_postgres(section: SqlSection, key: str) -> bool:
    """Return True for Postgres, False for SQLite. Raises HandlerError unless one is named."""
    named = {
        "sqlite": section.sqlite,
        "dsn_file": section.dsn_file,
        "dsn_credential": section.dsn_credential,
    }
    given = [each for each, value in named.items() if value is not None]
    if len(given) != 1:
        raise HandlerError(f"{key}: must name one database: {', '.join(named)}")
    if given == ["sqlite"]:
        return False
    if find_spec("asyncpg") is None:
        raise HandlerError(
            f"{key}.{given[0]}: Postgres needs asyncpg: pip install 'arc-commands[postgres]'"
        )
    return True


def _statement(section: SqlSection, params: Params, key: str, *, is_postgres: bool) -> Statement:
    """Return the statement, whose parameters must be declared. Raises HandlerError."""
    try:
        statement = read_statement(section.statement, is_postgres=is_postgres)
    except BadStatement as error:
        raise HandlerError(f"{key}.statement: {error}") from None
    for name in statement.names:
        param = params.by_name.get(name)
        if param is None:
            raise HandlerError(f"{key}.statement: :{name} is not in {params.key}")
        check_bounded(param)
        kinds = set(param.schema.types or ())
        is_scalar = all(not isinstance(each, list | dict) for each in param.schema.values or ())
        if not is_postgres and not (kinds <= _SQLITE_TYPES and is_scalar):
            raise HandlerError(f"{param.key}.type: SQLite knows no arrays and objects")
    params.refuse_unused(set(statement.names))
    return statement


def _dsn(section: SqlSection) -> str:
    """Return the DSN. Blocks. Raises CommandFailed, which never quotes it."""
    file = section.dsn_file
    if section.dsn_credential is not None:
        found = credential(section.dsn_credential)
        if found is None:
            raise CommandFailed("HANDLER_ERROR", "the unit has no credential of that name")
        file = Path(found)
    try:
        with (file or Path()).expanduser().open("rb") as opened:
            return opened.read(_MAX_DSN_BYTES).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise put_off(error, "sql") or CommandFailed(
            "HANDLER_ERROR", "the file of the DSN cannot be read"
        ) from None
