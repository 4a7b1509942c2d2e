"""LoopWatch notices that the main event loop stands still, and logs which handler blocks it."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from itertools import islice
from typing import Final

import structlog

from arc_agent.host.clock import MonotonicClock
from arc_agent.jobs.lease_table import LeaseTable

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_FRAMES: Final = 6
"""The frames of a blocked loop's stack that are logged: the blocking line, and its callers."""


class LoopWatch:
    """Watches the loop in whose thread it is made. `check` runs in another thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: MonotonicClock, leases: LeaseTable
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._leases = leases
        self._thread_id = threading.get_ident()
        self._asked_at: float | None = None
        self._is_logged = False

    def check(self, blocked_seconds: float) -> None:
        """Ask the loop for a sign of life, or log that it has owed one for too long."""
        now = self._clock()
        if self._asked_at is None:
            self._asked_at = now
            try:
                self._loop.call_soon_threadsafe(self._alive)
            except RuntimeError:
                self._asked_at = None
            return
        if now - self._asked_at < blocked_seconds or self._is_logged:
            return
        self._is_logged = True
        log.error("handler.blocking", **self._culprit(), seconds=round(now - self._asked_at, 1))

    def _alive(self) -> None:
        """Answer for the loop, in its thread."""
        asked_at, self._asked_at = self._asked_at, None
        if self._is_logged and asked_at is not None:
            self._is_logged = False
            seconds = round(self._clock() - asked_at, 1)
            log.warning("handler.blocking_ended", seconds=seconds)

    def _culprit(self) -> dict[str, object]:
        """Return the command whose handler's task runs now, and the line where it stands."""
        task = asyncio.current_task(self._loop)
        held = self._leases.all()
        lease = next((each for each in held if each.handler_task is task), None) if task else None
        frame = sys._current_frames().get(self._thread_id)  # pyright: ignore[reportPrivateUsage]
        # Innermost first, and no source lines: they may hold what a log must not.
        walked = islice(traceback.walk_stack(frame), _FRAMES) if frame is not None else ()
        places = [f"{f.f_code.co_filename}:{line} in {f.f_code.co_name}" for f, line in walked]
        return {
            "command": lease.command if lease is not None else None,
            "command_id": lease.command_id if lease is not None else None,
            "where": places[0] if places else None,
            "stack": places[1:],
            "running": sorted({each.command for each in held}),
        }
