"""Handlers that may run so many times at once only: who waits for its handler takes no slot.

A lease request cannot name commands, so a command whose handler is full is held, renewed, in a line
of its handler's while the others run. How many may wait is bounded: then no more is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from arc_agent.guard.turns import Turns
from arc_agent.handlers.registry import Handler

_UNLIMITED: Final = 1_000_000


class HandlerLimits:
    """A line for each handler with a limit. Lives in the main loop."""

    def __init__(
        self,
        *,
        find: Callable[[str], Handler | None],
        slots: Turns,
        max_waiting: Callable[[], int],
    ) -> None:
        """`find` is a handler as configured now, `slots` are the places of running handlers."""
        self._find = find
        self._slots = slots
        self._max_waiting = max_waiting
        self._lines: dict[str, Turns] = {}
        self._waiting: set[str] = set()

    @property
    def is_full(self) -> bool:
        """Whether so many wait that no more work must be asked for."""
        return len(self._waiting) >= self._max_waiting()

    def is_waiting(self, lease_id: str) -> bool:
        """Whether a command waits, for its handler or for its time."""
        return lease_id in self._waiting

    def try_enter(self, handler: Handler, lease_id: str) -> bool:
        """Take a place of the handler's if one is free, or if it needs none."""
        line = self._line(handler)
        return line is None or line.has(lease_id) or line.try_enter(lease_id)

    async def enter(self, handler: Handler, lease_id: str) -> None:
        """Take a place of the handler's, as soon as it is this one's turn."""
        line = self._line(handler)
        if line is None or self.try_enter(handler, lease_id):
            return
        self.wait(lease_id)
        try:
            await line.enter(lease_id)
        finally:
            self.go_on(lease_id)

    def wait(self, lease_id: str) -> None:
        """A command waits from here on: it gives its slot to another."""
        self._waiting.add(lease_id)
        self._slots.leave(lease_id)

    def go_on(self, lease_id: str) -> None:
        """It waits no more."""
        self._waiting.discard(lease_id)
        self._slots.look()

    def left(self, lease_id: str) -> None:
        """A run is over, whatever became of it."""
        self._waiting.discard(lease_id)
        for line in self._lines.values():
            line.leave(lease_id)

    def changed(self) -> None:
        """Limits may be others now."""
        for line in self._lines.values():
            line.look()

    def _line(self, handler: Handler) -> Turns | None:
        """The line of a handler, None when it has no limit and nobody stands in line."""
        line = self._lines.get(handler.name)
        if line is None and handler.concurrency is not None:
            limit = partial(self._limit, handler.name)
            line = self._lines[handler.name] = Turns(limit, lambda: None)
        return line

    def _limit(self, name: str) -> int:
        """How many may run at the same time, as configured now."""
        handler = self._find(name)
        return (handler.concurrency if handler is not None else None) or _UNLIMITED
