"""A session is what an operation works with: a connection inside its transaction.

An operation is a plain function of a session and its arguments. It reads first and writes then: an
ArcError that it raises has changed nothing. It may run twice (its batch was rolled back), so it
depends on nothing else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Any, Final

from arc_server.ports.meter import NO_METER, Move, ServerMeter
from arc_server.ports.records import Epoch
from arc_server.store.engine.deployments import KnownDeployment
from arc_server.store.engine.live_commands import LiveCommands
from arc_server.store.engine.queries import by_place
from arc_server.store.engine.rows import Row, target_of
from arc_server.store.engine.usage import UsageCounts

NUMBERS_PER_BLOCK: Final = 1_000
"""Numbers that are reserved at once; what is left of a block at the end is not used."""
_MAX_KNOWN_DEPLOYMENTS: Final = 10_000


class Again(Exception):
    """The transaction must be rolled back and the operation run again: it will know more then."""


class StoreSession:
    """A session runs the named queries on a connection, and remembers rows that are read often.

    Deployments and live commands are held as last read or written. They are forgotten when a
    transaction is undone or another process has written.
    """

    def __init__(self, connection: sqlite3.Connection, queries: Mapping[str, str]) -> None:
        self.connection: Final = connection
        self.live: Final = LiveCommands()
        self.usage: Final = UsageCounts()
        self.unreadable_params: Final[set[int]] = set()
        """Commands (by seq) whose params stand on damaged pages."""
        self._execute = connection.execute
        self._queries = {name: _placed(query) for name, query in queries.items()}
        self._deployments: dict[str, KnownDeployment] = {}
        self._next_number = 0
        self._numbers_end = 0
        self._data_version = 0
        self.wants_checkpoint = False
        """True if the log is to be written back and emptied after the next commit."""
        self.epoch: Epoch | None = None
        """The epoch as last read; only a restore begins another one."""
        self.meter: ServerMeter = NO_METER
        self.moves: Final[list[Move]] = []
        """The moves of the batch that runs, if the meter is on."""

    def rows(self, query: str, /, **params: Any) -> list[Row]:
        """Return all rows of a named query."""
        sql, bind = self._queries[query]
        return self._execute(sql, bind(params)).fetchall()

    def each(self, query: str, /, **params: Any) -> Iterator[Row]:
        """Yield the rows of a named query, of which the caller may leave some unread."""
        sql, bind = self._queries[query]
        yield from self._execute(sql, bind(params))

    def row(self, query: str, /, **params: Any) -> Row | None:
        """Return the only row of a named query, None if there is none."""
        found = self.rows(query, **params)
        return found[0] if found else None

    def change(self, query: str, /, **params: Any) -> int:
        """Run a named INSERT, UPDATE or DELETE; return how many rows it hit."""
        sql, bind = self._queries[query]
        return self._execute(sql, bind(params)).rowcount

    def next_number(self) -> int:
        """Return a number above all that were given out before, on this database."""
        if self._next_number == self._numbers_end:
            self.change("reserve_numbers", count=NUMBERS_PER_BLOCK)
            [(end,)] = self.rows("highest_number")
            self._numbers_end = int(end)
            self._next_number = self._numbers_end - NUMBERS_PER_BLOCK
        self._next_number += 1
        return self._next_number

    def deployment(self, deployment_id: str) -> KnownDeployment | None:
        """Return a registered deployment; it is remembered until `forget_deployment`."""
        known = self._deployments.get(deployment_id)
        if known is not None:
            return known
        row = self.row("find_deployment", deployment_id=deployment_id)
        if row is None:
            return None
        targets = {
            resource_id: target_of(resource_id, resource_type)
            for resource_id, resource_type in self.rows("targets_of", deployment_id=deployment_id)
        }
        known = KnownDeployment(deployment_id, targets, *row)
        if len(self._deployments) >= _MAX_KNOWN_DEPLOYMENTS:
            self._deployments.clear()
        self._deployments[deployment_id] = known
        return known

    def forget_deployment(self, deployment_id: str) -> None:
        """Forget a deployment that was changed."""
        self._deployments.pop(deployment_id, None)

    def write_usage(self) -> None:
        """Write what the batch has changed of the usage of deployments. Call before COMMIT."""
        for deployment_id, changes in self.usage.take_changes().items():
            self.change(
                "add_usage",
                deployment_id=deployment_id,
                live_commands=changes.live_commands,
                open_uploads=changes.open_uploads,
                stored_bytes=changes.stored_bytes,
                idempotency_keys=changes.idempotency_keys,
                dispatched=changes.dispatched,
                succeeded=changes.succeeded,
                failed=changes.failed,
                cancelled=changes.cancelled,
                expired=changes.expired,
            )

    def forget(self) -> None:
        """Forget what was read, and the numbers that were reserved: a transaction was undone."""
        self._deployments.clear()
        self.live.clear()
        self.usage.forget()
        self.moves.clear()
        self.epoch = None
        self._next_number = self._numbers_end = 0

    def notice_others(self) -> None:
        """Forget what was read if another process has written since. Call after BEGIN."""
        [(version,)] = self._execute("PRAGMA data_version").fetchall()
        if version != self._data_version:
            self._data_version = version
            self._deployments.clear()
            self.live.clear()
            self.usage.forget()


_Bind = Callable[[Mapping[str, Any]], tuple[Any, ...]]


def _placed(query: str) -> tuple[str, _Bind]:
    """Return a query with parameters by place, and a function that puts named values in order.

    The sqlite3 module looks each name up in SQLite and makes a string of it, for each execution:
    for the statements of one lifecycle that takes longer than all that they compute in Python.
    """
    sql, names = by_place(query)
    if len(names) > 1:
        return sql, itemgetter(*names)
    return sql, lambda params: tuple(params[name] for name in names)
