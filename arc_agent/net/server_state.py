"""The state of the server as this agent sees it: reachable or not, and the extensions it knows.

A loss of contact is logged once, and its return once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import structlog

from arc_agent.host.clock import MonotonicClock

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_REFUSED: Final = (
    "check the token (server.token_file, or arc-agent enrol); it is read again at each try"
)


class ServerState:
    """The server's reachability and extensions, shared by all loops. Safe from any thread.

    Each loop that sends requests is a channel: `lease`, `renew`, `submit`. Contact is lost when the
    first channel fails, and back when a failed channel succeeds.
    """

    def __init__(self, clock: MonotonicClock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failing: dict[str, str] = {}
        self._lost_at = 0.0
        self._reason: str | None = None
        self.answered_at: float | None = None
        """The instant of the last answer, on the agent's clock."""
        self._listeners: list[Callable[[], None]] = []
        self.epoch = 0
        """The number of returns of contact. After each, extensions are tried again."""
        self.knows_extensions = False
        """The server has sent a field that a server of the base protocol never sends."""
        self._unsupported: dict[str, int] = {}
        self._ended = 0

    def on_back(self, listener: Callable[[], None]) -> None:
        """Call `listener` when contact is back, from any thread."""
        self._listeners.append(listener)

    @property
    def is_lost(self) -> bool:
        """Return True if a channel has failed, and no failed channel has succeeded since."""
        return bool(self._failing)

    @property
    def is_refused(self) -> bool:
        """Return True if the server answers, and refuses the token."""
        with self._lock:
            return "contact.refused" in self._failing.values()

    def trouble(self) -> tuple[str, float] | None:
        """Return the reason of a loss of contact and its seconds so far; None while in contact."""
        with self._lock:
            if not self._failing:
                return None
            return self._reason or "no answer", self._clock() - self._lost_at

    def fails_beyond(self, channel: str) -> bool:
        """Return True if another channel fails too: then one request is not the reason."""
        with self._lock:
            return any(other != channel for other in self._failing)

    def failed(self, channel: str, reason: str, *, is_refusal: bool = False) -> None:
        """Record that a request brought no usable answer. `reason` goes into a log line.

        A refusal (401, 403) is logged as one: the server answers, but refuses the token.
        """
        kind = "contact.refused" if is_refusal else "contact.lost"
        with self._lock:
            is_news = kind not in self._failing.values()
            if not self._failing:
                self._lost_at = self._clock()
            self._failing[channel] = kind
            self._reason = reason
        if not is_news:
            return
        if is_refusal:
            log.error(kind, reason=reason, hint=_REFUSED)
        else:
            log.warning(kind, reason=reason)

    def count_ended(self) -> bool:
        """Count a command that has ended; return True if contact is lost.

        The log has one line about all commands of an outage; the audit log has each of them.
        """
        with self._lock:
            self._ended += bool(self._failing)
            return bool(self._failing)

    def succeeded(self, channel: str) -> None:
        """Record that a request was answered."""
        with self._lock:
            self.answered_at = self._clock()
            if channel not in self._failing:
                return
            self._failing.clear()
            self.epoch += 1
            seconds = self._clock() - self._lost_at
            ended, self._ended = self._ended, 0
        log.info("contact.back", after_seconds=round(seconds, 1), commands_ended_meanwhile=ended)
        for listener in self._listeners:
            listener()

    def supports(self, extension: str) -> bool:
        """Return True if an extension (`renewal`, `agents`) may be tried in this contact."""
        return self._unsupported.get(extension) != self.epoch

    def lacks(self, extension: str) -> None:
        """Record a 404 or 405. The extension is not tried again until contact was lost and back."""
        with self._lock:
            is_news = self._unsupported.get(extension) != self.epoch
            self._unsupported[extension] = self.epoch
        if is_news:
            log.info("server.lacks", extension=extension)
