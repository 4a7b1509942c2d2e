"""Turns limit how many commands do one thing at a time; the others wait in the order they came.

A lease request cannot name commands, so a command whose handler or whose rule is full comes all the
same. It keeps its lease, which is renewed, and gives its slot to another command while it waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Final

_UNLIMITED: Final = 1_000_000


class Turns:
    """Places that are taken in turn, each by a key. Lives in one loop."""

    def __init__(
        self, limit: Callable[[], int], on_change: Callable[[], None] = lambda: None
    ) -> None:
        """Allow `limit()` keys at a time. `on_change` is called whenever a place may be free."""
        self._limit = limit
        self._on_change = on_change
        self._taken: set[str] = set()
        self._waiting: list[str] = []
        self._changed = asyncio.Event()

    @property
    def free(self) -> int:
        """Return how many places can be taken at once. Keys that wait come first."""
        return max(0, self._limit() - len(self._taken) - len(self._waiting))

    def has(self, key: str) -> bool:
        """Return True if the key has a place."""
        return key in self._taken

    def try_take(self, key: str) -> bool:
        """Take a place if the key has one already or one is free now."""
        if key not in self._taken and self.free < 1:
            return False
        self._taken.add(key)
        return True

    async def take(self, key: str) -> None:
        """Wait until it is the key's turn, and take a place."""
        if self.try_take(key):
            return
        self._waiting.append(key)
        try:
            while self._waiting[0] != key or len(self._taken) >= self._limit():
                self._changed.clear()
                await self._changed.wait()
            self._taken.add(key)
        finally:
            self._waiting.remove(key)
            self.wake()

    def release(self, key: str) -> None:
        """Free the key's place, if it has one."""
        if key in self._taken:
            self._taken.discard(key)
            self.wake()

    def wake(self) -> None:
        """Let every waiter try again. Call it when the limit has changed."""
        self._changed.set()
        self._on_change()


class KeyedTurns:
    """Turns for each of many names, such as handlers or rules. Lives in one loop.

    A command that waits gives its slot away. The number that wait is bounded: the owner
    checks `is_full` first.
    """

    def __init__(
        self,
        *,
        limit_of: Callable[[str], int | None],
        slots: Turns,
        max_waiting: Callable[[], int],
    ) -> None:
        """Ask `limit_of(name)` whenever it matters; None means that the name has no limit."""
        self._limit_of = limit_of
        self._slots = slots
        self._max_waiting = max_waiting
        self._turns: dict[str, Turns] = {}
        self._waiting: set[str] = set()

    @property
    def is_full(self) -> bool:
        """Return True if no further command may wait."""
        return len(self._waiting) >= self._max_waiting()

    def is_waiting(self, lease_id: str) -> bool:
        """Return True if a command waits."""
        return lease_id in self._waiting

    def try_take(self, name: str, lease_id: str) -> bool:
        """Take a place under a name if one is free now, or if the name has no limit."""
        turns = self._of(name)
        return turns is None or turns.try_take(lease_id)

    async def take(self, name: str, lease_id: str) -> None:
        """Wait until it is the command's turn under a name, and take a place."""
        turns = self._of(name)
        if turns is None or turns.try_take(lease_id):
            return
        with self.waiting(lease_id):
            await turns.take(lease_id)

    @contextmanager
    def waiting(self, lease_id: str) -> Generator[None]:
        """Give the command's slot to another command while the block waits."""
        self._waiting.add(lease_id)
        self._slots.release(lease_id)
        try:
            yield
        finally:
            self._waiting.discard(lease_id)
            self._slots.wake()

    def release(self, lease_id: str) -> None:
        """Free all places of a command, under every name."""
        for turns in self._turns.values():
            turns.release(lease_id)

    def wake(self) -> None:
        """Let every waiter try again. Call it when limits have changed."""
        for turns in self._turns.values():
            turns.wake()

    def _of(self, name: str) -> Turns | None:
        """Return the turns of a name; None while it has never had a limit."""
        turns = self._turns.get(name)
        if turns is None and self._limit_of(name) is not None:
            turns = self._turns[name] = Turns(partial(self._limit, name))
        return turns

    def _limit(self, name: str) -> int:
        """Return the limit in force."""
        limit = self._limit_of(name)
        return _UNLIMITED if limit is None else limit
