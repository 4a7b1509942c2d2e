"""The rows of a database in a file, as JSON or CSV, within bounds.

Instants, dates and times become ISO 8601 texts, decimals texts with all their digits, intervals
seconds, and bytes base64. NULL becomes null, and an empty field in CSV. Numbers that JSON cannot
express become texts.
"""

from __future__ import annotations

import csv
import json
import math
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Literal, cast

from arc_agent.handlers.context import CommandFailed

SQL_ERROR: Final = "SQL_ERROR"
TOO_LARGE: Final = "RESULT_TOO_LARGE"
_FLUSH_BYTES: Final = 256 * 1024


class RowWriter:
    """A writer of rows into a file. Its methods block: call them in a thread."""

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        form: Literal["json", "jsonl", "csv"],
        *,
        max_rows: int,
        max_bytes: int,
    ) -> None:
        """Raise CommandFailed for two columns of one name. The file is opened later."""
        twice = next((name for name in columns if columns.count(name) > 1), None)
        if twice is not None and form != "csv":
            raise CommandFailed(SQL_ERROR, f"two columns are called {twice!r}")
        self.rows = 0
        self._form = form
        self._columns = list(columns)
        self._max_rows, self._max_bytes = max_rows, max_bytes
        self._size = 0
        self._parts: list[bytes] = []
        self._pending = 0
        self._path = path
        self._file: BinaryIO | None = None
        if form == "csv":
            self._put(_csv_line(self._columns))
        elif form == "json":
            self._put(b"[")

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        """Write rows. Raises CommandFailed when the bounds are exceeded, OSError."""
        for row in rows:
            if self.rows >= self._max_rows:
                raise CommandFailed(TOO_LARGE, f"there are more than {self._max_rows} rows")
            before = b"," if self._form == "json" and self.rows else b""
            self._put(before + self._line(row))
            self.rows += 1

    def finish(self) -> None:
        """Write the rest of the file. Raises CommandFailed, OSError."""
        if self._form == "json":
            self._put(b"]")
        self._flush()

    def __enter__(self) -> RowWriter:
        """Return the writer, which the block closes."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _line(self, row: Sequence[Any]) -> bytes:
        """Return a row as bytes."""
        if self._form == "csv":
            return _csv_line([_csv_value(plain(value)) for value in row])
        values = dict(zip(self._columns, map(plain, row), strict=True))
        line = json.dumps(values, allow_nan=False, separators=(",", ":")).encode("ascii")
        return line + b"\n" if self._form == "jsonl" else line

    def _put(self, data: bytes) -> None:
        """Buffer bytes, and write a full buffer. Raises CommandFailed, OSError."""
        self._size += len(data)
        if self._size > self._max_bytes:
            raise CommandFailed(TOO_LARGE, f"the result is larger than {self._max_bytes} bytes")
        self._parts.append(data)
        self._pending += len(data)
        if self._pending >= _FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Write the buffer. Raises OSError."""
        if self._file is None:
            self._file = self._path.open("wb")
        self._file.write(b"".join(self._parts))
        self._file.flush()
        self._parts.clear()
        self._pending = 0


def plain(value: Any) -> Any:
    """Return a value of a database as a JSON value."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return b64encode(cast("bytes", value)).decode("ascii")
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in cast("Sequence[Any]", value)]
    return str(value)


def _csv_value(value: Any) -> Any:
    """Return a plain value as a field of CSV."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, dict | list) else value


def _csv_line(values: Sequence[Any]) -> bytes:
    """Return a line of CSV (RFC 4180)."""
    out = StringIO()
    csv.writer(out).writerow(values)
    return out.getvalue().encode("utf-8", "replace")
