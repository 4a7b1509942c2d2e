"""Rows, instants, checksums, errors: the small parts of the store."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_server.ports.records import (
    AwaitedBlob,
    DamagedBody,
    StoredBlob,
    StoredError,
    StoredInline,
    StoredParams,
    StoredSuccess,
)
from arc_server.store.engine import faults, rows
from arc_server.store.operations import bodies

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def as_read(row: bodies.BodyRow) -> tuple[object, ...]:
    """A row as SQLite gives it back."""
    form, data, size, checksum = row
    return form, bytes(data), size, checksum


@given(st.datetimes(timezones=st.just(UTC)))
def test_instants_keep_their_microsecond(moment: datetime) -> None:
    assert rows.moment(rows.micros(moment)) == moment


def test_an_instant_of_another_zone_is_the_same_instant() -> None:
    there = datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))

    assert rows.micros(there) == rows.micros(datetime(2026, 1, 1, tzinfo=UTC))
    assert rows.micros(datetime(1970, 1, 1, tzinfo=UTC)) == 0


def test_an_instant_without_zone_is_refused() -> None:
    with pytest.raises(TypeError):
        rows.micros(datetime(2026, 1, 1))


@given(
    st.builds(StoredInline, data=st.binary())
    | st.builds(StoredBlob, path=TEXT, size=st.integers(0, 2**63 - 1))
    | st.builds(AwaitedBlob, path=TEXT, size=st.none() | st.integers(0, 2**63 - 1))
)
def test_params_survive_a_row(params: StoredInline | StoredBlob | AwaitedBlob) -> None:
    assert bodies.to_params(*as_read(bodies.of_params(params))) == params


@given(st.builds(StoredError, code=TEXT, message=TEXT, details=st.none() | TEXT))
def test_errors_survive_a_row(error: StoredError) -> None:
    assert bodies.to_response(*as_read(bodies.of_response(error))) == error


@given(st.binary(min_size=1), st.data())
def test_every_changed_byte_is_noticed(data: bytes, draw: st.DataObject) -> None:
    form, stored, size, checksum = bodies.of_params(StoredInline(data=data))
    at = draw.draw(st.integers(0, len(data) - 1))
    changed = bytearray(stored)
    changed[at] ^= draw.draw(st.integers(1, 255))

    assert isinstance(bodies.to_params(form, bytes(changed), size, checksum), DamagedBody)


@pytest.mark.parametrize(
    "row",
    [
        (None, None, None, None),
        (1, "text", None, 0),
        (1, None, None, 0),
        ("1", b"", None, 0),
        (1, b"", None, None),
        (1, b"", 5, bodies.checksum(1, b"", 0)),
        (1, b"", None, bodies.checksum(1, b"", None)),
        (2, b"", None, bodies.checksum(1, b"", None)),
        (9, b"", None, bodies.checksum(9, b"", None)),
        (4, b"", None, bodies.checksum(4, b"", None)),
        (2, b"\xff", 3, bodies.checksum(2, b"\xff", 3)),
        (2, b"p", None, bodies.checksum(2, b"p", None)),
        (3, b"\xff", 3, bodies.checksum(3, b"\xff", 3)),
    ],
    ids=repr,
)
def test_what_is_no_params_is_damaged(row: tuple[object, ...]) -> None:
    damaged: StoredParams = bodies.to_params(*row)

    assert isinstance(damaged, DamagedBody)
    assert damaged.reason


@pytest.mark.parametrize(
    "row",
    [
        (3, b"p", None, bodies.checksum(3, b"p", None)),
        (4, b"\xc1", None, bodies.checksum(4, b"\xc1", None)),
        (4, b"", None, bodies.checksum(4, b"", None)),
        (2, b"\xff", 3, bodies.checksum(2, b"\xff", 3)),
        (9, b"", None, bodies.checksum(9, b"", None)),
    ],
    ids=repr,
)
def test_what_is_no_response_is_damaged(row: tuple[object, ...]) -> None:
    assert isinstance(bodies.to_response(*row), DamagedBody)


def test_no_row_is_no_response() -> None:
    assert bodies.to_response(None, None, None, None) is None
    response = StoredSuccess(body=StoredInline(data=b"x"))
    assert bodies.to_response(*as_read(bodies.of_response(response))) == response


def an_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("pretended")
    error.sqlite_errorcode = code
    error.sqlite_errorname = "SQLITE_PRETENDED"
    return error


@pytest.mark.parametrize(
    ("code", "spoils_batch", "leaves_doubt"),
    [
        (sqlite3.SQLITE_FULL, True, False),
        (sqlite3.SQLITE_BUSY, True, False),
        (sqlite3.SQLITE_READONLY, True, False),
        (sqlite3.SQLITE_NOMEM, True, False),
        (sqlite3.SQLITE_CONSTRAINT_UNIQUE, False, False),
        (sqlite3.SQLITE_IOERR_FSYNC, True, True),
        (sqlite3.SQLITE_IOERR_WRITE, True, True),
        (sqlite3.SQLITE_CORRUPT, False, True),
        (sqlite3.SQLITE_ERROR, False, True),
    ],
)
def test_what_an_error_means(code: int, spoils_batch: bool, leaves_doubt: bool) -> None:
    assert faults.is_of_the_batch(an_error(code)) == spoils_batch
    assert faults.leaves_doubt(an_error(code)) == leaves_doubt
    assert faults.is_failed_fsync(an_error(code)) == (code == sqlite3.SQLITE_IOERR_FSYNC)
    told = faults.reason(an_error(code))
    assert told.startswith("the d")
    assert "SQLITE" not in told
    assert "pretended" not in told
    assert ("is full" in told) == (code == sqlite3.SQLITE_FULL)


def test_an_error_of_the_operating_system_at_a_commit_leaves_doubt() -> None:
    assert faults.is_of_the_batch(OSError(5, "EIO"))
    assert faults.leaves_doubt(OSError(5, "EIO"))
    assert not faults.is_of_the_batch(ValueError())
