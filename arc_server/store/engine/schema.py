"""The schema: numbered migrations, each applied whole or not at all."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

from arc_server.store.engine.refusals import StoreCorrupt, StoreTooNew

APPLICATION_ID: Final = 0x41524373
"""`ARCs` in the header of our databases: any other file is left alone."""
_FILE_NAME: Final = re.compile(r"(?P<number>\d{4})_(?P<date>\d{4}-\d{2}-\d{2})_(?P<title>\w+)\.sql")


class Migration(NamedTuple):
    """One step of the schema. `user_version` of a database is the number of its last one."""

    number: int
    name: str
    statements: tuple[str, ...]


@cache
def migrations() -> tuple[Migration, ...]:
    """Return all, in order. Raises ValueError when a number is missing or a name is wrong."""
    found: list[Migration] = []
    for file in (files("arc_server.store") / "migrations").iterdir():
        if not file.name.endswith(".sql"):
            continue
        parts = _FILE_NAME.fullmatch(file.name)
        if parts is None:
            raise ValueError(f"migration {file.name}: the name is not NNNN_YYYY-MM-DD_title.sql")
        statements = tuple(split(file.read_text("utf-8")))
        found.append(Migration(int(parts["number"]), file.name, statements))
    found.sort()
    if [each.number for each in found] != list(range(1, len(found) + 1)):
        raise ValueError("migrations are not numbered 1, 2, 3, …")
    return tuple(found)


def split(script: str) -> Iterator[str]:
    """Yield the statements of a script. Raises ValueError when the last one has no semicolon."""
    statement = ""
    for line in script.splitlines():
        if not statement and (not line.strip() or line.lstrip().startswith("--")):
            continue
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement.strip()
            statement = ""
    if statement:
        raise ValueError(f"a statement without an end: {statement[:60]}")


def newest() -> int:
    """Return the number of the schema that this release works with."""
    return len(migrations())


def version_of(connection: sqlite3.Connection) -> int:
    """Return the number of the schema of a database, 0 for an empty one.

    Raises StoreCorrupt when it is not ours, StoreTooNew when this release does not know it.
    """
    version = _pragma(connection, "user_version")
    is_ours = _pragma(connection, "application_id") == APPLICATION_ID
    if not is_ours:
        [(objects,)] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        if objects or version:
            raise StoreCorrupt("it is a database of another program")
        return 0
    if version > newest():
        raise StoreTooNew(
            f"its schema is {version} and this release knows {newest()}: it was written by a newer"
            f" release. Install that one, or put back its copy of before, arc.db.schema-{newest()}"
        )
    return version


def migrate(connection: sqlite3.Connection) -> int:
    """Bring a database up to date; return how many migrations were applied.

    Safe beside other processes: each step holds the write lock and reads the version again.
    """
    applied = 0
    for migration in migrations():
        if version_of(connection) >= migration.number:
            continue
        connection.execute("BEGIN IMMEDIATE")
        try:
            if version_of(connection) == migration.number - 1:
                for statement in migration.statements:
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {migration.number}")
                applied += 1
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return applied


def check(connection: sqlite3.Connection, queries: Mapping[str, str]) -> None:
    """Check that the schema is current and that every query can be prepared against it.

    Raises StoreCorrupt, StoreTooNew.
    """
    if version_of(connection) != newest():
        raise StoreCorrupt("its schema is incomplete")
    for name, query in queries.items():
        try:
            connection.execute(f"EXPLAIN {query}", _Anything()).fetchone()
        except sqlite3.OperationalError as error:
            raise StoreCorrupt(f"its schema does not fit the query {name}: {error}") from None


class _Anything(dict[str, None]):
    """A value for every parameter."""

    def __missing__(self, key: str) -> None:
        return None


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    [(value,)] = connection.execute(f"PRAGMA {name}").fetchall()
    return value
