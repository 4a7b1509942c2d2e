"""What one run says: progress and lines, until they are sent."""

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
"""Of lines and progress in one request: with all around them it stays below MAX_EVENTS_BYTES."""
_REQUEST_LINES: Final = 1_000


class RunEvents:
    """What one run says, until the server has it. Its methods may be called from any thread."""

    def __init__(
        self, command_id: str, lease_id: str, settings: EventsSection, on_said: Callable[[], None]
    ) -> None:
        """`on_said` is called, from any thread, when there is something to send."""
        self.command_id: Final = command_id
        self.lease_id: Final = lease_id
        self.is_ended = False
        self._settings = settings
        self._on_said = on_said
        self._lock = threading.Lock()
        self._lines: deque[tuple[LogLine, int]] = deque()
        self._bytes = 0
        self._number = 0
        self._dropped = 0
        self._progress: Progress | None = None
        self.latest: Progress | None = None
        """How far it said it was, sent or not."""

    def progress(self, done: float, total: float | None, text: str | None) -> None:
        """Say how far it is; only the latest is sent. Raises ValueError for what is no number."""
        if not math.isfinite(done) or (total is not None and not math.isfinite(total)):
            raise ValueError("progress is counted in finite numbers")
        shown = None if text is None else _fit(redact_text(text))
        self.latest = said = Progress(done=done, total=total, text=shown)
        if not self._settings.enabled:
            return
        with self._lock:
            self._progress = said
        self._on_said()

    def line(self, level: Level, message: str) -> None:
        """Say a line, if lines of this level are sent at all."""
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
        self._on_said()

    @property
    def last_number(self) -> int:
        """Of the line that was said last."""
        return self._number

    def pending(self) -> EventsRequest | None:
        """What is to be sent next, None when there is nothing."""
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
        """The server has it."""
        last = request.lines[-1].number if request.lines else 0
        with self._lock:
            left = len(request.lines)
            while self._lines and self._lines[0][0].number <= last:
                self._bytes -= self._lines.popleft()[1]
                left -= 1
            self._dropped -= left  # dropped while they were on their way after all
            if self._progress is request.progress:
                self._progress = None

    def forget(self) -> None:
        """The server wants nothing of it."""
        with self._lock:
            self._lines.clear()
            self._bytes = 0
            self._progress = None


class HandlerLog:
    """What `ctx.log` is: lines of the agent's log, and to the command's sender as well.

    The sender gets message and fields, never a traceback.
    """

    def __init__(
        self, logger: Any, say: Callable[[Level, str], None] | None, **fields: Any
    ) -> None:
        """`logger`: structlog's, bound to the command; `fields` are of this handler's own."""
        self._logger = logger.bind(**fields) if fields else logger
        self._say = say
        self._fields = fields

    def bind(self, **fields: Any) -> HandlerLog:
        """The same with more fields on every line."""
        return HandlerLog(self._logger, self._say, **self._fields, **fields)

    def debug(self, message: str, *args: Any, **fields: Any) -> None:
        """For whoever looks into it; not sent unless `events.level` says so."""
        self._logger.debug(message, *args, **fields)
        self._tell("debug", message, args, fields)

    def info(self, message: str, *args: Any, **fields: Any) -> None:
        """What happens."""
        self._logger.info(message, *args, **fields)
        self._tell("info", message, args, fields)

    def warning(self, message: str, *args: Any, **fields: Any) -> None:
        """What may be wrong."""
        self._logger.warning(message, *args, **fields)
        self._tell("warning", message, args, fields)

    def error(self, message: str, *args: Any, **fields: Any) -> None:
        """What is wrong."""
        self._logger.error(message, *args, **fields)
        self._tell("error", message, args, fields)

    def exception(self, message: str, *args: Any, **fields: Any) -> None:
        """The same, with the traceback of the exception at hand: in the agent's log alone."""
        self._logger.exception(message, *args, **fields)
        self._tell("error", message, args, fields)

    def _tell(
        self, level: Level, message: str, args: tuple[Any, ...], fields: dict[str, Any]
    ) -> None:
        if self._say is None:
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
        self._say(level, " ".join([redact_text(text), *parts]))


def _fit(text: str) -> str:
    """Text that fits, and that JSON can say."""
    text = str(text).encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= MAX_EVENT_TEXT else f"{text[: MAX_EVENT_TEXT - 1]}…"
