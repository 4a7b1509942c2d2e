"""The lease table holds this process's leases, for the main loop and the heartbeat's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import Any

from arc_agent.jobs.job import Job


class End(StrEnum):
    """Why a handler must stop before it is done."""

    CANCELLED = "cancelled"
    """The sender wants it; CANCELLED is submitted."""
    TIMEOUT = "timeout"
    """The budget is used up; HANDLER_TIMEOUT is submitted."""
    LOST = "lost"
    """The server has leased the command to another holder; nothing is submitted."""
    LAPSED = "lapsed"
    """The lease lapsed: it could not be renewed; nothing is submitted."""
    DRAIN = "drain"
    """The agent stops; the lease is released."""
    HALTED = "halted"
    """An operator ended all that ran on the host; STOPPED_BY_HOST is submitted."""


class HeldLease:
    """A lease. Its fields may be read from any thread; only the table's methods move its times.

    A lease ends `seconds` after `asked_at`, which is on the agent's clock and from before the
    request that the server answered.
    """

    def __init__(
        self,
        *,
        lease_id: str,
        command_id: str,
        command: str,
        attempt: int,
        asked_at: float,
        seconds: float,
    ) -> None:
        self.lease_id = lease_id
        self.command_id = command_id
        self.command = command
        self.attempt = attempt
        self.since = asked_at
        """When the command came, on the agent's clock."""
        self.asked_at = asked_at
        self.seconds = seconds
        self.ends_at = asked_at + seconds
        self.has_result = False
        """True once the handler is done: the lease is renewed until the response is delivered."""
        self.is_unwanted = False
        """The sender cancelled the command after its handler was done."""
        self.approval_until: datetime | None = None
        """Set while its command waits for an operator, who has until then."""
        self.end: End | None = None
        self.handler_task: asyncio.Task[Any] | None = None
        """The task of its handler, for the watchdog that looks for one that blocks the loop."""
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []

    @property
    def is_stopped(self) -> bool:
        """Return True once the handler is to stop. Handlers in threads read it."""
        return self.end is not None

    @classmethod
    def of(cls, job: Job) -> HeldLease:
        """Return the lease of a job."""
        return cls(
            lease_id=job.lease.lease_id,
            command_id=job.lease.command_id,
            command=job.lease.envelope.command,
            attempt=job.lease.attempt,
            asked_at=job.asked_at,
            seconds=job.seconds,
        )

    def stop(self, reason: End) -> bool:
        """Stop the handler, and return True, unless it is stopped already.

        A lease whose handler is done is left alone: finished work is still submitted. A cancel of
        it is noted in `is_unwanted`.
        """
        with self._lock:
            if self.end is not None or (self.has_result and reason is not End.CANCELLED):
                return False
            if self.has_result:
                self.is_unwanted = True
            else:
                self.end = reason
            listeners = list(self._listeners)
        for listener in listeners:
            listener()
        return self.end is not None

    def finish(self) -> End | None:
        """Record that the handler is done: nothing stops it any more. Return an earlier end."""
        with self._lock:
            if self.end is None:
                self.has_result = True
            return self.end

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener`, from any thread, when the lease is to stop or its bounds changed."""
        with self._lock:
            self._listeners.append(listener)
            is_over = self.end is not None or self.is_unwanted
        if is_over:
            listener()

    def changed(self) -> None:
        """Call the listeners: the bounds of the handler have changed."""
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener()


class LeaseTable:
    """All leases that are held, by id. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, HeldLease] = {}
        self._commands: dict[str, str] = {}
        self._on_added: Callable[[HeldLease], None] = lambda _: None

    def on_added(self, listener: Callable[[HeldLease], None]) -> None:
        """Call `listener` with each lease that is added: it may have to be renewed soon."""
        self._on_added = listener

    def add(self, lease: HeldLease) -> None:
        """Hold a lease."""
        with self._lock:
            self._held[lease.lease_id] = lease
            self._commands[lease.command_id] = lease.lease_id
        self._on_added(lease)

    def remove(self, lease_id: str) -> None:
        """Hold a lease no more."""
        with self._lock:
            lease = self._held.pop(lease_id, None)
            if lease is not None and self._commands.get(lease.command_id) == lease_id:
                del self._commands[lease.command_id]

    def get(self, lease_id: str) -> HeldLease | None:
        """Return a lease by its id, None when it is not held."""
        with self._lock:
            return self._held.get(lease_id)

    def of_command(self, command_id: str) -> HeldLease | None:
        """Return the lease under which a command is held here, or None."""
        with self._lock:
            return self._held.get(self._commands.get(command_id, ""))

    def all(self) -> list[HeldLease]:
        """Return the leases that are held now."""
        with self._lock:
            return list(self._held.values())

    def extend(self, lease_id: str, asked_at: float, seconds: float) -> None:
        """Record a renewal. It never shortens a lease."""
        with self._lock:
            lease = self._held.get(lease_id)
            if lease is None:
                return
            lease.asked_at, lease.seconds = asked_at, seconds
            lease.ends_at = max(lease.ends_at, asked_at + seconds)

    def asked(self, lease_id: str, asked_at: float) -> None:
        """Record an answered renewal that did not name this lease: the next is not due at once."""
        with self._lock:
            lease = self._held.get(lease_id)
            if lease is not None:
                lease.asked_at = max(lease.asked_at, asked_at)
