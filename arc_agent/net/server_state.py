"""Whether the server answers, told once when it is lost and once when it is back."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from arc_agent.host.clock import MonotonicClock

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class ServerState:
    """What is known of the server: does it answer, and which of our additions does it know.

    Several loops talk to it, one channel each: `lease`, `renew`, `submit`. Contact is lost when the
    first of them fails, and back when one that failed succeeds. Safe from any thread.
    """

    def __init__(self, clock: MonotonicClock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failing: dict[str, str] = {}
        self._lost_at = 0.0
        self._reason: str | None = None
        self.answered_at: float | None = None
        """When the server last answered, on the agent's clock."""
        self._listeners: list[Callable[[], None]] = []
        self.epoch = 0
        """How often contact was regained. What a server cannot do is asked again in each."""
        self.knows_additions = False
        """Whether it has shown a field that servers of part 1 only do not send."""
        self._unsupported: dict[str, int] = {}
        self._ended = 0

    def on_back(self, listener: Callable[[], None]) -> None:
        """Call `listener`, from any thread, when contact is back."""
        self._listeners.append(listener)

    @property
    def is_lost(self) -> bool:
        """Whether some channel has failed and none of these has succeeded since."""
        return bool(self._failing)

    def trouble(self) -> tuple[str, float] | None:
        """Why contact is lost, and for how many seconds it has been; None when it is not."""
        with self._lock:
            if not self._failing:
                return None
            return self._reason or "no answer", self._clock() - self._lost_at

    def fails_beyond(self, channel: str) -> bool:
        """Whether any other channel fails too: then it is not about one request."""
        with self._lock:
            return any(other != channel for other in self._failing)

    def failed(self, channel: str, reason: str, *, is_refusal: bool = False) -> None:
        """A request brought no usable answer. `reason` is fit for a log line.

        A refusal (401, 403) is told apart: the server is there, but the token is not accepted.
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
            log.error(kind, reason=reason, hint="check the token; it is read again at each try")
        else:
            log.warning(kind, reason=reason)

    def count_ended(self) -> bool:
        """A command has ended: whether without contact, so that one line at its end tells of all.

        A long outage is no reason for a long log; the audit log has each of them.
        """
        with self._lock:
            self._ended += bool(self._failing)
            return bool(self._failing)

    def succeeded(self, channel: str) -> None:
        """A request was answered."""
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

    def supports(self, addition: str) -> bool:
        """Whether an addition (`renewal`, `agents`) is to be tried in this contact."""
        return self._unsupported.get(addition) != self.epoch

    def lacks(self, addition: str) -> None:
        """The server answered 404 or 405: it is not asked again until contact was lost and back."""
        with self._lock:
            is_news = self._unsupported.get(addition) != self.epoch
            self._unsupported[addition] = self.epoch
        if is_news:
            log.info("server.lacks", addition=addition)
