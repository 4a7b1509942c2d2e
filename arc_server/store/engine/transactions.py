"""A batch in its thread: one transaction, or a few when something goes wrong.

Group commit: all operations of a batch run in one transaction and share its commit. Each is all or
nothing by itself all the same: when one fails in the middle, the batch is rolled back and its
operations run again, each in a transaction of its own.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from arc_protocol.errors import ArcError, StoreUnavailable
from arc_runtime import failpoints
from arc_server.store.engine import faults
from arc_server.store.engine.batches import Operation
from arc_server.store.engine.session import Again, StoreSession

CHECKPOINT_PATIENCE_MS: Final = 20

log = structlog.get_logger(__name__)

MAX_SECONDS: Final = 0.02
"""The time after which a batch takes no further operation: the first waits for the last, and 512
leases of a thousand commands would take many seconds."""


class _Undone(Exception):
    """An operation failed in a way that undoes its transaction.

    It had written before, or it met damage: SQLite lets nothing be written after that. `args` is
    (its error,).
    """


class Writing:
    """Writing commits batches on the write connection."""

    def __init__(self, session: StoreSession, on_failure: Callable[[str], None]) -> None:
        """Commit on the session's connection; call `on_failure` when a commit has left doubt."""
        self._db = session
        self._connection: Final = session.connection
        self._on_failure = on_failure
        self._failure = ""

    def __call__(self, batch: Sequence[Operation]) -> int:
        """Run and commit a batch, or the first operations of it; return how many.

        No transaction is left open, also after an error.
        """
        began = time.monotonic()
        try:
            return self._commit(batch)
        except BaseException:
            self._roll_back()
            raise
        finally:
            self._db.meter.wrote(time.monotonic() - began)

    def _commit(self, batch: Sequence[Operation]) -> int:
        if self._failure:
            _refuse(batch, StoreUnavailable(faults.FAILED))
            return len(batch)
        try:
            self._begin()
            done = self._run(batch)
            self._db.write_usage()
        except _Undone as undone:
            self._roll_back()
            if len(batch) > 1 or isinstance(undone.args[0], Again):
                return self._commit_each(batch)
            batch[0].error = undone.args[0]
            return 1
        except (sqlite3.Error, OSError) as error:
            self._roll_back()
            if faults.is_failed_fsync(error):
                self._give_up(error)
            self._refuse(batch, error)
            return len(batch)
        try:
            failpoints.hit("store.before_commit")
            began = time.monotonic()
            self._connection.execute("COMMIT")
            self._tell_meter(done, time.monotonic() - began)
            failpoints.hit("store.after_commit")
            if self._db.wants_checkpoint:
                self._checkpoint()
        except (sqlite3.Error, OSError) as error:
            if faults.leaves_doubt(error):
                self._give_up(error)
            self._roll_back()
            self._refuse(batch[:done], error)
        return done

    def _tell_meter(self, operations: int, seconds: float) -> None:
        self._db.meter.committed(operations, seconds, self._db.moves)
        self._db.moves.clear()

    def _commit_each(self, batch: Sequence[Operation]) -> int:
        """Commit operations one by one, until time is up; return how many."""
        ends_at = time.monotonic() + MAX_SECONDS
        for done, operation in enumerate(batch, 1):
            self._commit((operation,))
            if time.monotonic() >= ends_at:
                return done
        return len(batch)

    def _checkpoint(self) -> None:
        """Write the log back and empty its file: that gives its room back to the disk.

        A reader that is in the middle of something is waited for in no more than a moment; then
        the file stays for now.
        """
        self._db.wants_checkpoint = False
        [(patience,)] = self._connection.execute("PRAGMA busy_timeout").fetchall()
        try:
            self._connection.execute(f"PRAGMA busy_timeout = {CHECKPOINT_PATIENCE_MS}")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            if faults.is_failed_fsync(error):
                self._give_up(error)
            log.warning("store.checkpoint_failed", reason=faults.name_of(error))
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {patience}")

    def _begin(self) -> None:
        failpoints.hit("store.before_begin")
        self._connection.execute("BEGIN IMMEDIATE")
        self._db.notice_others()
        failpoints.hit("store.after_begin")

    def _run(self, batch: Sequence[Operation]) -> int:
        """Run operations until time is up; return how many. Raises _Undone, and what
        `is_of_the_batch`."""
        connection = self._connection
        ends_at = time.monotonic() + MAX_SECONDS
        changes = connection.total_changes
        for done, operation in enumerate(batch, 1):
            operation.error = None
            try:
                operation.answer = operation.function(self._db, *operation.args)
            except Exception as error:
                if faults.is_of_the_batch(error):
                    raise
                operation.error = _for_caller(error)
                is_whole = connection.total_changes == changes and connection.in_transaction
                if not is_whole or isinstance(error, Again) or faults.is_damage(error):
                    raise _Undone(operation.error) from error
            changes = connection.total_changes
            failpoints.hit("store.after_operation")
            if time.monotonic() >= ends_at:
                return done
        return len(batch)

    def _roll_back(self) -> None:
        self._db.forget()
        if not self._connection.in_transaction:
            return
        try:
            self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Commit nothing any more: it is unknown what is on the disk."""
        if self._failure:
            return
        reason = f"the database must be opened anew: {faults.name_of(error)}"
        log.critical("store.failed", reason=reason)
        self._failure = reason
        self._on_failure(reason)

    def _refuse(self, batch: Sequence[Operation], error: Exception) -> None:
        log.error("store.commit_failed", reason=faults.name_of(error), operations=len(batch))
        _refuse(batch, faults.for_callers(error))


class Reading:
    """Reading answers batches on a reading connection, each from one snapshot."""

    def __init__(self, session: StoreSession) -> None:
        self._db = session

    def __call__(self, batch: Sequence[Operation]) -> int:
        """Run a batch; an error concerns its own operation alone."""
        connection = self._db.connection
        try:
            connection.execute("BEGIN")
            for operation in batch:
                try:
                    operation.answer = operation.function(self._db, *operation.args)
                except Exception as error:
                    operation.error = _for_caller(error)
        except sqlite3.Error as error:
            log.error("store.read_failed", reason=faults.name_of(error), operations=len(batch))
            _refuse(batch, faults.for_callers(error))
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        return len(batch)


def _refuse(batch: Sequence[Operation], error: StoreUnavailable) -> None:
    for operation in batch:
        operation.error = type(error)(error.message)  # each caller raises its own


def _for_caller(error: Exception) -> Exception:
    """Return the error that the caller of a failed operation gets."""
    if isinstance(error, ArcError) or not isinstance(error, sqlite3.Error):
        return error
    log.error("store.operation_failed", reason=faults.name_of(error))
    return faults.for_callers(error)
