"""Reads on a connection of their own: they see what is committed, and wait for no writer."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import structlog

from arc_protocol.errors import StoreUnavailable
from arc_server.store import faults
from arc_server.store.session import Session
from arc_server.store.worker import Worker

P = ParamSpec("P")
T = TypeVar("T")
log = structlog.get_logger(__name__)


class Reads:
    """One reading connection."""

    def __init__(self, worker: Worker, session: Session) -> None:
        self._worker = worker
        self._db = session
        self._one_at_a_time = asyncio.Lock()
        self._is_closed = False

    def at_once(
        self, function: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Read a few rows by their key, on the event loop's thread: that is done before a hop into
        another thread would have begun. Raises StoreUnavailable."""
        self._check()
        try:
            return function(self._db, *args, **kwargs)
        except sqlite3.Error as error:
            raise _unavailable(error) from error

    async def aside(self, function: Callable[..., T], *args: Any) -> T:
        """Read what may take long, in the connection's thread. Raises StoreUnavailable."""
        self._check()
        async with self._one_at_a_time:
            try:
                return await self._worker.run(function, self._db, *args)
            except (sqlite3.Error, ValueError) as error:
                raise _unavailable(error) from error

    async def close(self) -> None:
        """Wait for what is being read, then close."""
        self._is_closed = True
        await self._worker.close()

    def _check(self) -> None:
        if self._is_closed:
            raise StoreUnavailable("the store is closed")


def _unavailable(error: Exception) -> StoreUnavailable:
    log.error("store.read_failed", reason=faults.name_of(error))
    return faults.unavailable(error)
