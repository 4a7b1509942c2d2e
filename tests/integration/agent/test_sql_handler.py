"""Handlers that ask a database: a real SQLite file, and a real Postgres."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from arc_agent.config.declared_handlers import SqlSection
from arc_agent.handlers.context import CommandFailed
from arc_agent.handlers.declared.sql import sql_handler
from tests.support.declared_runs import Run
from tests.support.real_postgres import postgres
from tests.support.waiting import until

TEXT = {"type": "string", "maxLength": 100}
NUMBER = {"type": "integer", "minimum": -(2**62), "maximum": 2**62}
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
SLOW = "SELECT pg_sleep(60)"


@pytest.fixture
def db(tmp_path: Path) -> Path:
    file = tmp_path / "app ?#.db"
    with sqlite3.connect(file) as made:
        made.executescript(
            "CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT, photo BLOB, score REAL);"
            "INSERT INTO people VALUES (1, 'Ann', x'00ff', 1.5), (2, 'Zoë', NULL, NULL);"
        )
    made.close()
    return file


def rows(file: Path, statement: str = "SELECT count(*) FROM people") -> Any:
    opened = sqlite3.connect(file)
    try:
        return opened.execute(statement).fetchone()[0]
    finally:
        opened.close()


async def ask(tmp_path: Path, db: Path, statement: str, given: Any = None, **section: Any) -> Any:
    declared = SqlSection(statement=statement, sqlite=db, **section)
    return await Run(sql_handler("x", declared), tmp_path / "run", given)()


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (
            "json",
            '[{"id":1,"name":"Ann","photo":"AP8=","score":1.5},'
            '{"id":2,"name":"Zo\\u00eb","photo":null,"score":null}]',
        ),
        (
            "jsonl",
            '{"id":1,"name":"Ann","photo":"AP8=","score":1.5}\n'
            '{"id":2,"name":"Zo\\u00eb","photo":null,"score":null}\n',
        ),
        ("csv", "id,name,photo,score\r\n1,Ann,AP8=,1.5\r\n2,Zoë,,\r\n"),
    ],
)
async def test_rows_come_in_the_form_that_is_asked_for(
    tmp_path: Path, db: Path, form: Any, text: str
) -> None:
    result = await ask(tmp_path, db, "SELECT * FROM people ORDER BY id", format=form)

    assert result.decode() == text


async def test_no_rows_are_an_empty_list(tmp_path: Path, db: Path) -> None:
    assert await ask(tmp_path, db, "SELECT * FROM people WHERE 0") == b"[]"


async def test_params_are_bound_and_never_read_as_sql(tmp_path: Path, db: Path) -> None:
    statement = "SELECT :a AS a, ':a' AS b, :n + 1 AS n, :none AS none"
    result = await ask(
        tmp_path,
        db,
        statement,
        {"a": "x'; DROP TABLE people; --", "n": 41.0},
        params={
            "a": TEXT,
            "n": NUMBER,
            "none": {"type": ["string", "null"], "maxLength": 9, "default": None},
        },
    )

    assert json.loads(result) == [
        {"a": "x'; DROP TABLE people; --", "b": ":a", "n": 42, "none": None}
    ]
    assert rows(db) == 2


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM people",
        "INSERT INTO people (name) VALUES ('x') RETURNING id",
        "CREATE TABLE other (id)",
        "CREATE TEMP TABLE other (id)",
        "PRAGMA query_only = OFF",
        "PRAGMA writable_schema = ON",
        "ATTACH '/tmp/other.db' AS other",
        "COMMIT",
        "VACUUM INTO '/tmp/copy.db'",
        "SELECT load_extension('/tmp/x.so')",
    ],
)
async def test_what_is_not_reading_is_refused_by_the_database(
    tmp_path: Path, db: Path, statement: str
) -> None:
    before = db.read_bytes()
    with pytest.raises(CommandFailed) as refused:
        await ask(tmp_path, db, statement)

    assert refused.value.code == "SQL_ERROR"
    assert db.read_bytes() == before


async def test_common_reading_is_allowed(tmp_path: Path, db: Path) -> None:
    result = await ask(
        tmp_path,
        db,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3)"
        " SELECT i, (SELECT value FROM json_each('[7]')) AS j, upper('x') AS u FROM n",
    )

    assert len(json.loads(result)) == 3


async def test_writing_is_possible_where_it_is_said_and_counts(tmp_path: Path, db: Path) -> None:
    changed = await ask(
        tmp_path,
        db,
        "UPDATE people SET score = :s",
        {"s": 2},
        params={"s": NUMBER},
        write=True,
    )
    made = await ask(
        tmp_path, db, "INSERT INTO people (name) VALUES ('B') RETURNING id", write=True
    )

    assert (changed, json.loads(made)) == ({"rows": 2}, [{"id": 3}])
    assert rows(db, "SELECT sum(score) FROM people") == 4


@pytest.mark.parametrize("statement", ["PRAGMA user_version = 9", "ATTACH '/tmp/x.db' AS x"])
async def test_other_files_and_settings_are_out_of_reach_of_writing_too(
    tmp_path: Path, db: Path, statement: str
) -> None:
    with pytest.raises(CommandFailed, match="not authorized"):
        await ask(tmp_path, db, statement, write=True)


@pytest.mark.parametrize(
    "bounds", [{"max_rows": 9}, {"max_result_bytes": 50}], ids=["rows", "bytes"]
)
async def test_a_result_over_its_limit_is_an_error_and_changes_nothing(
    tmp_path: Path, db: Path, bounds: dict[str, int]
) -> None:
    statement = (
        "INSERT INTO people (name) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n"
        " WHERE i < 50) SELECT i FROM n RETURNING id"
    )
    with pytest.raises(CommandFailed) as failed:
        await ask(tmp_path, db, statement, write=True, **bounds)

    assert failed.value.code == "RESULT_TOO_LARGE"
    assert rows(db) == 2


@pytest.mark.parametrize(
    ("statement", "params", "code"),
    [
        ("SELECT * FROM nothing", None, "SQL_ERROR"),
        ("SELECT 1 AS a, 2 AS a", None, "SQL_ERROR"),
        ("SELECT :n", {"n": 2**65}, "INVALID_PARAMS"),
    ],
)
async def test_what_the_database_cannot_do_is_an_error(
    tmp_path: Path, db: Path, statement: str, params: Any, code: str
) -> None:
    declared = {"n": {**NUMBER, "maximum": 2**70}} if params else {}
    with pytest.raises(CommandFailed) as failed:
        await ask(tmp_path, db, statement, params, params=declared)

    assert failed.value.code == code


async def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    for write in (False, True):
        with pytest.raises(CommandFailed, match="unable to open"):
            await ask(tmp_path, tmp_path / "none.db", "SELECT 1", write=write)

    assert not (tmp_path / "none.db").exists()


async def test_a_query_that_is_cancelled_is_interrupted(tmp_path: Path, db: Path) -> None:
    def is_running() -> bool:
        return any(each.name == "handler:x" for each in threading.enumerate())

    run = Run(sql_handler("x", SqlSection(statement=ENDLESS, sqlite=db)), tmp_path / "run")
    task = asyncio.create_task(run())
    await until(is_running)
    run.stopped.set()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not is_running())


async def test_a_database_that_somebody_holds_is_waited_for_until_the_end(
    tmp_path: Path, db: Path
) -> None:
    holder = sqlite3.connect(db, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    declared = SqlSection(statement="UPDATE people SET score = 9", sqlite=db, write=True)
    task = asyncio.create_task(Run(sql_handler("x", declared), tmp_path / "run")())
    _, pending = await asyncio.wait({task}, timeout=0.3)
    holder.execute("COMMIT")
    holder.close()

    assert pending
    assert await task == {"rows": 2}


# Postgres


@pytest.fixture(scope="module")
def pg() -> Iterator[str]:
    with postgres() as directory:
        yield directory


@pytest.fixture
def dsn_file(pg: str, tmp_path: Path) -> Path:
    file = tmp_path / "dsn"
    file.write_text(f"postgresql://postgres:s3cret@/postgres?host={pg}\n")
    return file


async def ask_pg(
    tmp_path: Path, dsn_file: Path, statement: str, given: Any = None, **section: Any
) -> Any:
    declared = SqlSection(statement=statement, dsn_file=dsn_file, **section)
    result = await Run(sql_handler("x", declared), tmp_path / "run", given)()
    return json.loads(result) if isinstance(result, bytes) else result


async def test_types_of_postgres_are_json(tmp_path: Path, dsn_file: Path) -> None:
    (row,) = await ask_pg(
        tmp_path,
        dsn_file,
        """SELECT 1::int8 AS i, 1.10::numeric AS d, 'NaN'::float8 AS nan, NULL AS none,
        '2026-01-02 03:04:05+00'::timestamptz AS at, '2026-01-02'::date AS day,
        '1 hour'::interval AS took, '\\x00ff'::bytea AS raw, ARRAY[1, 2] AS list,
        '{"a": [1]}'::jsonb AS doc, '00000000-0000-0000-0000-000000000001'::uuid AS id,
        true AS yes, '10.0.0.1'::inet AS ip""",
    )

    assert row == {
        "i": 1,
        "d": "1.10",
        "nan": "nan",
        "none": None,
        "at": "2026-01-02T03:04:05+00:00",
        "day": "2026-01-02",
        "took": 3600.0,
        "raw": "AP8=",
        "list": [1, 2],
        "doc": {"a": [1]},
        "id": "00000000-0000-0000-0000-000000000001",
        "yes": True,
        "ip": "10.0.0.1",
    }


async def test_params_are_bound_as_the_types_that_postgres_wants(
    tmp_path: Path, dsn_file: Path
) -> None:
    (row,) = await ask_pg(
        tmp_path,
        dsn_file,
        "SELECT :t::text AS t, :n::int AS n, :d::numeric AS d, :at::timestamptz AS at,"
        " :raw::bytea AS raw, 3 = ANY(:ids::int[]) AS has, :doc::jsonb AS doc, :t AS again",
        {
            "t": "'; DROP TABLE x; --",
            "n": 3.0,
            "d": 1.5,
            "at": "2026-01-02T03:04:05Z",
            "raw": "AP8=",
            "ids": [1, 3],
            "doc": ["a"],
        },
        params={
            "t": TEXT,
            "n": NUMBER,
            "d": {"type": "number", "minimum": 0, "maximum": 9},
            "at": TEXT,
            "raw": TEXT,
            "ids": {"type": "array", "maxItems": 9, "items": NUMBER},
            "doc": {"type": "array", "maxItems": 9, "items": TEXT},
        },
    )

    assert row == {
        "t": "'; DROP TABLE x; --",
        "n": 3,
        "d": "1.5",
        "at": "2026-01-02T03:04:05+00:00",
        "raw": "AP8=",
        "has": True,
        "doc": ["a"],
        "again": "'; DROP TABLE x; --",
    }


@pytest.mark.parametrize(
    ("statement", "value"),
    [("SELECT :a::date AS d", "soon"), ("SELECT :a::int AS d", "x"), ("SELECT :a::uuid", "x")],
)
async def test_a_param_of_another_type_is_refused(
    tmp_path: Path, dsn_file: Path, statement: str, value: str
) -> None:
    with pytest.raises(CommandFailed) as refused:
        await ask_pg(tmp_path, dsn_file, statement, {"a": value}, params={"a": TEXT})

    assert refused.value.code == "INVALID_PARAMS"


async def test_postgres_refuses_to_write_unless_it_is_said(tmp_path: Path, dsn_file: Path) -> None:
    made = await ask_pg(tmp_path, dsn_file, "CREATE TABLE t (id int)", write=True)
    with pytest.raises(CommandFailed, match=r"^25006: .*read-only transaction"):
        await ask_pg(tmp_path, dsn_file, "INSERT INTO t VALUES (1)")
    changed = await ask_pg(tmp_path, dsn_file, "INSERT INTO t VALUES (1), (2)", write=True)
    returned = await ask_pg(tmp_path, dsn_file, "UPDATE t SET id = id + 1 RETURNING id", write=True)
    with pytest.raises(CommandFailed, match="more than 1 rows"):
        await ask_pg(tmp_path, dsn_file, "DELETE FROM t RETURNING id", write=True, max_rows=1)
    kept = await ask_pg(tmp_path, dsn_file, "SELECT count(*) AS n FROM t")

    assert (made, changed) == ({"rows": 0}, {"rows": 2})
    assert (returned, kept) == ([{"id": 2}, {"id": 3}], [{"n": 2}])


async def test_many_rows_come_by_a_cursor(tmp_path: Path, dsn_file: Path) -> None:
    declared = SqlSection(
        statement="SELECT i FROM generate_series(1, 3000) AS i", dsn_file=dsn_file, format="csv"
    )
    result = await Run(sql_handler("x", declared), tmp_path / "run")()

    assert result.splitlines() == [b"i", *(str(i).encode() for i in range(1, 3001))]


async def test_a_query_over_its_time_is_ended_by_postgres_itself(
    tmp_path: Path, dsn_file: Path
) -> None:
    with pytest.raises(CommandFailed, match=r"^57014: "):
        await ask_pg(tmp_path, dsn_file, SLOW, timeout_seconds=0.2)


async def test_a_run_that_is_cancelled_cancels_the_query(
    tmp_path: Path, dsn_file: Path, pg: str
) -> None:
    watcher = await asyncpg.connect(host=pg, user="postgres", database="postgres")
    running = (
        "SELECT count(*) > 0 FROM pg_stat_activity"
        " WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
    )
    try:
        task = asyncio.create_task(ask_pg(tmp_path, dsn_file, SLOW))
        await until(lambda: watcher.fetchval(running))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: watcher.fetchval(f"SELECT NOT ({running})"))
    finally:
        await watcher.close()


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:s3cret@127.0.0.1:1/x",
        "nonsense s3cret",
        "postgresql://u:s3cret@[::1/x",
        "postgresql://u:s3cret@127.0.0.1:port/x",
        "",
    ],
)
async def test_a_database_that_cannot_be_had_is_an_error_that_quotes_no_dsn(
    tmp_path: Path, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGHOST", str(tmp_path))  # nothing listens there
    file = tmp_path / "dsn"
    file.write_text(dsn)
    with pytest.raises(CommandFailed) as failed:
        await ask_pg(tmp_path, file, "SELECT 1")

    assert failed.value.code == "DATABASE_UNREACHABLE"
    assert "s3cret" not in str(failed.value)
    assert failed.value.__cause__ is None
    assert failed.value.__suppress_context__


async def test_the_dsn_may_be_a_credential_of_the_unit(
    tmp_path: Path, dsn_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(dsn_file.parent))
    declared = SqlSection(statement="SELECT 1 AS a", dsn_credential="dsn")

    assert await Run(sql_handler("x", declared), tmp_path / "run")() == b'[{"a":1}]'
