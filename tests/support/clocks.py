"""Clocks that tests move: of the agent, of the server and of the sender."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from datetime import UTC, datetime, timedelta

START = datetime(2026, 11, 24, 12, tzinfo=UTC)


class AgentClock:
    """The agent's monotonic clock: seconds that only the test moves."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class SenderClock:
    """The sender's clock: time passes at once when the sender sleeps, or when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Let the time pass at once."""
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        """Let time pass in which the sender does not sleep."""
        self.now += seconds


class ServerClock:
    """The server's clock: `advance` lets time pass, `jump_wall` sets the host's wall clock."""

    def __init__(self, start: datetime = START) -> None:
        self._origin = start
        self._monotonic = 1_000.0
        self._zero = self._monotonic
        self._ahead = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def now(self) -> datetime:
        return self._origin + timedelta(seconds=self._monotonic - self._zero)

    def drift(self) -> float:
        return self._ahead

    def adjust(self, seconds: float) -> None:
        self._origin += timedelta(seconds=seconds)
        self._ahead -= seconds

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._numbers), future))
        await future

    @property
    def sleeping(self) -> int:
        """Return how many tasks sleep."""
        return sum(not future.done() for _, _, future in self._sleepers)

    def advance(self, seconds: float) -> None:
        """Let time pass. Each task that slept until then wakes."""
        self._monotonic += seconds
        while self._sleepers and self._sleepers[0][0] <= self._monotonic:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)

    def jump_wall(self, seconds: float) -> None:
        """Set the host's wall clock ahead."""
        self._ahead += seconds
