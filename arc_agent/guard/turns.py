"""Places that are taken in turn: so many inside at the same time, the others wait in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Turns:
    """Who is inside and who waits, by a key each. Lives in one loop."""

    def __init__(self, limit: Callable[[], int], on_change: Callable[[], None]) -> None:
        """`limit` may change: say so with `look`. `on_change` is told when somebody leaves."""
        self._limit = limit
        self._on_change = on_change
        self._inside: set[str] = set()
        self._waiting: list[str] = []
        self._changed = asyncio.Event()

    @property
    def free(self) -> int:
        """How many more may come in at once; those who wait go first."""
        return max(0, self._limit() - len(self._inside) - len(self._waiting))

    def has(self, key: str) -> bool:
        """Whether somebody is inside."""
        return key in self._inside

    def try_enter(self, key: str) -> bool:
        """Take a place if one is free now."""
        if self.free < 1:
            return False
        self._inside.add(key)
        return True

    async def enter(self, key: str) -> None:
        """Take a place, as soon as it is this one's turn; it may have one already."""
        if key in self._inside or self.try_enter(key):
            return
        self._waiting.append(key)
        try:
            while self._waiting[0] != key or len(self._inside) >= self._limit():
                self._changed.clear()
                await self._changed.wait()
            self._inside.add(key)
        finally:
            self._waiting.remove(key)
            self.look()

    def leave(self, key: str) -> None:
        """Give a place back, if it has one."""
        if key in self._inside:
            self._inside.discard(key)
            self.look()

    def look(self) -> None:
        """Let those who wait look again."""
        self._changed.set()
        self._on_change()
