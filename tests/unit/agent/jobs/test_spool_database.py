"""Group commit of the spool: one transaction for all, and what becomes of each when it fails."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arc_agent.jobs.spool_database import SpoolDatabase, SpoolError

FAILURES: list[str] = []


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SpoolDatabase]:
    FAILURES.clear()
    opened = SpoolDatabase(tmp_path / "spool.db", FAILURES.append)
    yield opened
    opened.close()


def dead(seq: int, reason: str = "") -> Any:
    """An operation that adds a row."""

    def add(db: sqlite3.Connection) -> int:
        db.execute("INSERT INTO dead VALUES (?, 'c', 'l', 'x', 1, ?, 0, 0)", (seq, reason))
        return seq

    return add


def rows(database: SpoolDatabase) -> list[int]:
    return [row[0] for row in database.connection.execute("SELECT seq FROM dead ORDER BY seq")]


def failing(code: int) -> Any:
    """An operation that fails as the disk may."""

    def fail(_: sqlite3.Connection) -> None:
        error = sqlite3.OperationalError("disk trouble")
        error.sqlite_errorcode = code
        raise error

    return fail


def test_all_that_waits_is_one_transaction(database: SpoolDatabase) -> None:
    statements: list[str] = []
    database.connection.set_trace_callback(statements.append)

    assert database.write([dead(1), dead(2), dead(3)]) == [1, 2, 3]

    assert [each for each in statements if each in ("BEGIN IMMEDIATE", "COMMIT")] == [
        "BEGIN IMMEDIATE",
        "COMMIT",
    ]


def test_an_operation_that_fails_spoils_no_other(database: SpoolDatabase) -> None:
    results = database.write([dead(1), dead(1), lambda _: 1 / 0, dead(2)])

    assert (results[0], results[3]) == (1, 2)
    assert isinstance(results[1], sqlite3.IntegrityError)
    assert isinstance(results[2], ZeroDivisionError)
    assert rows(database) == [1, 2]
    assert database.failure is None


def test_a_large_row_on_a_full_disk_spoils_no_small_one(database: SpoolDatabase) -> None:
    ((pages,),) = database.connection.execute("PRAGMA page_count").fetchall()
    database.connection.execute(f"PRAGMA max_page_count = {pages}")

    results = database.write([dead(1), dead(2, "x" * 100_000), dead(3)])

    assert (results[0], results[2]) == (1, 3)
    assert results[1].sqlite_errorcode == sqlite3.SQLITE_FULL
    assert rows(database) == [1, 3]
    assert database.failure is None


@pytest.mark.parametrize("others", [[], [dead(1)]])
def test_after_an_io_error_nothing_is_written_any_more(
    database: SpoolDatabase, others: list[Any]
) -> None:
    results = database.write([failing(sqlite3.SQLITE_IOERR_FSYNC), *others])

    assert all(str(each) == "disk trouble" for each in results)
    assert FAILURES == ["disk trouble"]
    (later,) = database.write([dead(9)])
    assert str(later) == "disk trouble"
    assert rows(database) == []
    assert FAILURES == ["disk trouble"], "it is told once"


def test_an_io_error_while_operations_are_tried_one_by_one_ends_the_rest(
    database: SpoolDatabase,
) -> None:
    results = database.write([dead(1), dead(1), failing(sqlite3.SQLITE_IOERR), dead(2)])

    assert results[0] == 1
    assert [str(each) for each in results[2:]] == ["disk trouble", "disk trouble"]
    assert rows(database) == [1]


def test_a_file_of_a_newer_agent_is_left_alone(tmp_path: Path) -> None:
    SpoolDatabase(tmp_path / "spool.db", FAILURES.append).close()
    with sqlite3.connect(tmp_path / "spool.db") as db:
        db.execute("PRAGMA user_version = 9")
    db.close()

    with pytest.raises(SpoolError, match=r"newer agent \(version 9\)"):
        SpoolDatabase(tmp_path / "spool.db", FAILURES.append)


@pytest.mark.parametrize("place", [0, 8192])
def test_a_damaged_file_is_refused(tmp_path: Path, place: int) -> None:
    opened = SpoolDatabase(tmp_path / "spool.db", FAILURES.append)
    opened.write([dead(seq, "x" * 2000) for seq in range(100)])
    opened.close()
    with (tmp_path / "spool.db").open("r+b") as file:
        file.seek(place)
        file.write(b"\xff" * 8192)

    with pytest.raises(SpoolError, match="spool") as raised:
        SpoolDatabase(tmp_path / "spool.db", FAILURES.append)
    assert not raised.value.may_pass


def test_a_path_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match="cannot be used"):
        SpoolDatabase(tmp_path, FAILURES.append)
