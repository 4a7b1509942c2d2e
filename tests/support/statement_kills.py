"""A write connection that kills its process at one statement, chosen by the environment.

`ARC_STATEMENT_KILL` is `N:before` or `N:after`, counted from when the store is open, or
`open:N:before`, counted from the first statement on. A process that is not killed had fewer.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path
from typing import Any, Final

from arc_server.store.engine import opening
from arc_server.store.engine.thread import Worker, worker

VARIABLE: Final = "ARC_STATEMENT_KILL"


def install() -> None:
    """Let write connections of this process kill it, if the environment asks for it."""
    if not os.environ.get(VARIABLE):
        return
    prepare = opening._prepare

    def prepare_killing(connection: sqlite3.Connection) -> None:
        assert isinstance(connection, KillingConnection)
        connection.is_counting = os.environ[VARIABLE].startswith("open:")
        prepare(connection)
        connection.is_counting = True

    opening.worker = _killing_worker
    opening._prepare = prepare_killing


def _killing_worker(path: Path, *, busy_timeout_seconds: float) -> Worker:
    return worker(path, busy_timeout_seconds=busy_timeout_seconds, factory=KillingConnection)


class KillingConnection(sqlite3.Connection):
    """Counts the statements of a connection that was prepared for writing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        number, _, when = os.environ[VARIABLE].removeprefix("open:").partition(":")
        self.is_counting = False
        self._fatal = int(number)
        self._dies_before = when != "after"
        self._count = 0

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if not self.is_counting:
            return super().execute(sql, parameters)
        self._count += 1
        if self._count != self._fatal:
            return super().execute(sql, parameters)
        if self._dies_before:
            self._die(sql)
        cursor = super().execute(sql, parameters)
        self._die(sql)
        return cursor

    def _die(self, sql: str) -> None:
        os.write(2, f"{VARIABLE}: statement {self._count}: {sql[:60]}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
