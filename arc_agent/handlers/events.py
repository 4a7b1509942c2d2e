"""The events of a run: progress and log lines, kept until they are sent."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, Literal

from arc_agent.config.sections import EventsSection
from arc_protocol.codec import encode
from arc_protocol.messages.events import MAX_EVENT_TEXT, EventsRequest, LogLine, Progress
from arc_runtime.logs.redaction import redact_fields, redact_text

Level = Literal["debug", "info", "warning", "error"]
_RANKS: Final = {"debug": 0, "info": 1, "warning": 2, "error": 3, "none": 4}
_REQUEST_BYTES: Final = 60_000
"""The lines and progress of one request; with the rest it stays below MAX_EVENTS_BYTES."""
_REQUEST_LINES: Final = 1_000


class RunEvents:
    """The events of one run that the server does not have yet. Safe from any thread."""

    def __init__(
        self, command_id: str, lease_id: str, settings: EventsSection, on_event: Callable[[], None]
    ) -> None:
        """Call `on_event`, from any thread, when there is an event to send."""
        self.command_id: Final = command_id
        self.lease_id: Final = lease_id
        self.is_ended = False
        self._settings = settings
        self._on_event = on_event
        self._lock = threading.Lock()
        self._lines: deque[tuple[LogLine, int]] = deque()
        self._bytes = 0
        self._number = 0
        self._dropped = 0
        self._progress: Progress | None = None
        self.latest: Progress | None = None
        """The latest progress, sent or not."""

    def progress(self, done: float, total: float | None, text: str | None) -> None:
        """Report progress; the latest is sent. Raises ValueError for a number that is not
        finite.
        """
        if not math.isfinite(done) or (total is not None and not math.isfinite(total)):
            raise ValueError("progress is counted in finite numbers")
        shown = None if text is None else _fit(redact_text(text))
        self.latest = reported = Progress(done=done, total=total, text=shown)
        if not self._settings.enabled:
            return
        with self._lock:
            self._progress = reported
        self._on_event()

    def line(self, level: Level, message: str) -> None:
        """Add a line, if lines of this level are sent."""
        settings = self._settings
        if not settings.enabled or _RANKS[level] < _RANKS[settings.level]:
            return
        with self._lock:
            self._number += 1
            line = LogLine(
                number=self._number, at=datetime.now(UTC), level=level, message=_fit(message)
            )
            size = len(encode(line)) + 1
            self._lines.append((line, size))
            self._bytes += size
            while self._bytes > self._settings.buffer_bytes and len(self._lines) > 1:
                self._bytes -= self._lines.popleft()[1]
                self._dropped += 1
        self._on_event()

    @property
    def last_number(self) -> int:
        """Return the number of the last line."""
        return self._number

    def pending(self) -> EventsRequest | None:
        """Return the next request; None when there is nothing to send."""
        with self._lock:
            if not self._lines and self._progress is None:
                return None
            lines: list[LogLine] = []
            room = _REQUEST_BYTES - (0 if self._progress is None else len(encode(self._progress)))
            for line, size in self._lines:
                if size > room or len(lines) == _REQUEST_LINES:
                    break
                lines.append(line)
                room -= size
            return EventsRequest(
                lease_id=self.lease_id,
                lines=lines,
                progress=self._progress,
                dropped=self._dropped,
            )

    def sent(self, request: EventsRequest) -> None:
        """Drop the events of a request that the server took."""
        last = request.lines[-1].number if request.lines else 0
        with self._lock:
            dropped_meanwhile = len(request.lines)
            while self._lines and self._lines[0][0].number <= last:
                self._bytes -= self._lines.popleft()[1]
                dropped_meanwhile -= 1
            self._dropped -= dropped_meanwhile  # counted as dropped while they were sent
            if self._progress is request.progress:
                self._progress = None

    def forget(self) -> None:
        """Drop all events: the server refuses them."""
        with self._lock:
            self._lines.clear()
            self._bytes = 0
            self._progress = None


class HandlerLog:
    """The logger `ctx.log`: its lines go to the agent's log and to the command's sender.

    The sender gets message and fields, never a traceback.
    """

    def __init__(
        self, logger: Any, send: Callable[[Level, str], None] | None, **fields: Any
    ) -> None:
        """Log by structlog's `logger`, bound to the command, with the handler's own `fields`."""
        self._logger = logger.bind(**fields) if fields else logger
        self._send = send
        self._fields = fields

    def bind(self, **fields: Any) -> HandlerLog:
        """Return a logger with more fields on every line."""
        return HandlerLog(self._logger, self._send, **self._fields, **fields)

    def debug(self, message: str, *args: Any, **fields: Any) -> None:
        """Log a detail. By default (`events.level`) it is not sent."""
        self._logger.debug(message, *args, **fields)
        self._forward("debug", message, args, fields)

    def info(self, message: str, *args: Any, **fields: Any) -> None:
        """Log what happens."""
        self._logger.info(message, *args, **fields)
        self._forward("info", message, args, fields)

    def warning(self, message: str, *args: Any, **fields: Any) -> None:
        """Log what may be wrong."""
        self._logger.warning(message, *args, **fields)
        self._forward("warning", message, args, fields)

    def error(self, message: str, *args: Any, **fields: Any) -> None:
        """Log what is wrong."""
        self._logger.error(message, *args, **fields)
        self._forward("error", message, args, fields)

    def exception(self, message: str, *args: Any, **fields: Any) -> None:
        """Log an error with the current traceback, which only the agent's log gets."""
        self._logger.exception(message, *args, **fields)
        self._forward("error", message, args, fields)

    def _forward(
        self, level: Level, message: str, args: tuple[Any, ...], fields: dict[str, Any]
    ) -> None:
        if self._send is None:
            return
        text = str(message)
        if args:
            try:
                text = text % args
            except (TypeError, ValueError):
                text = f"{text} {args}"
        shown = {**self._fields, **fields}
        shown.pop("exc_info", None)
        shown.pop("stack_info", None)
        parts = [f"{name}={value}" for name, value in redact_fields(shown).items()]
        self._send(level, " ".join([redact_text(text), *parts]))


def _fit(text: str) -> str:
    """Return text that JSON can express, cut to the longest allowed."""
    text = str(text).encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= MAX_EVENT_TEXT else f"{text[: MAX_EVENT_TEXT - 1]}…"
