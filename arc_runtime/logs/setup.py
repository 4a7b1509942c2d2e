"""Logging writes events with fields, always without secrets.

They are JSON lines, text on a terminal, or fields of the journal. Modules write
`log = structlog.get_logger()` and `log.info("lease.acquired", command_id=…)`. Records of the
standard `logging`, and warnings, become events too.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, Literal, TextIO, TypeVar

import structlog

from arc_runtime.logs import journald
from arc_runtime.logs.output import LogOutput, LogSink
from arc_runtime.logs.redaction import redact_fields

T = TypeVar("T")

Format = Literal["auto", "json", "text"]
LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

_JSON: Final = json.JSONEncoder(default=str)
_RESET: Final = "\x1b[0m"
_DIM: Final = "\x1b[2m"
_COLOURS: Final = {
    "debug": _DIM,
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[31m",
}


def configure(
    format: Format = "auto",  # noqa: A002  # the name of the configuration key
    level: str = "info",
    stream: TextIO | None = None,
) -> LogSink:
    """Set up logging for the process, and return the output; again for another level or format.

    `auto` is text on a terminal, fields in systemd's journal if standard error leads there, and
    JSON lines elsewhere. `stream` is standard error by default. A reader that is gone or does not
    read never stops the process: lines are dropped and counted. Raises ValueError for an unknown
    format or level.
    """
    threshold = LEVELS.get(level)
    if threshold is None:
        raise ValueError(f"unknown log level {level!r}; there are {', '.join(LEVELS)}")
    target = stream if stream is not None else sys.stderr
    render, output = _journal(format, target) or _lines(format, target)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redact,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=_Factory(output),
        cache_logger_on_first_use=False,  # so that a reload can change the level
    )
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _ThroughStructlog):
            root.removeHandler(handler)
    root.addHandler(_ThroughStructlog())
    root.setLevel(threshold)
    logging.captureWarnings(True)
    return output


def _lines(chosen: Format, stream: TextIO | None) -> tuple[structlog.typing.Processor, LogSink]:
    """Return the renderer and the output of lines. Raises ValueError for an unknown format."""
    render = _renderer(chosen, stream)
    output = _in_use(LogOutput, stream) or LogOutput(stream)
    output.describe_loss(lambda lines: str(_loss(render, lines)))
    return render, output


def _journal(
    chosen: Format, stream: TextIO | None
) -> tuple[structlog.typing.Processor, LogSink] | None:
    """Return the renderer and the output of the journal; None if the stream leads elsewhere."""
    if chosen != "auto" or "JOURNAL_STREAM" not in os.environ:
        return None
    if not journald.leads_to_journal(stream):
        return None

    def render(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
        shown = {name: value for name, value in event.items() if name not in ("timestamp", "level")}
        message = _text(shown, "", "", "").lstrip()
        return (journald.fields(event, message),), {}

    try:
        output = _in_use(journald.JournalOutput, stream) or journald.JournalOutput()
    except OSError:
        return None
    output.describe_loss(lambda lines: _loss(render, lines)[0][0])
    return render, output


def _in_use(kind: type[T], stream: TextIO | None) -> T | None:
    """Return the output in use if it is of this stream: bound loggers go on with it."""
    factory = structlog.get_config()["logger_factory"]
    if not isinstance(factory, _Factory) or not factory.output.is_open_for(stream):
        return None
    return factory.output if isinstance(factory.output, kind) else None


class _Factory:
    """A factory makes structlog's innermost loggers, all on one output."""

    def __init__(self, output: LogSink) -> None:
        self.output = output

    def __call__(self, *_: Any) -> _Logger:
        """Return an innermost logger."""
        return _Logger(self.output)


class _Logger:
    """An innermost logger writes the finished lines of every level."""

    def __init__(self, output: LogSink) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = output.write
        self.msg = self.log = self.failure = self.fatal = self.warn = self.exception = output.write


class _ThroughStructlog(logging.Handler):
    """A handler that makes events of the records of `logging`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record's text as an event. Never raises."""
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        try:
            text = record.getMessage()
        except Exception:  # a broken log call must not break its caller
            text = f"a message that cannot be formatted: {record.msg!r}"
        structlog.get_logger().log(level, text, logger=record.name, exc_info=record.exc_info)


def _redact(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Take the secrets out of an event. A processor."""
    return redact_fields(event)


def _renderer(chosen: Format, stream: TextIO | None) -> structlog.typing.Processor:
    """Return the last processor, which makes one line of an event. Raises ValueError."""
    if chosen not in ("auto", "json", "text"):
        raise ValueError(f"unknown log format {chosen!r}; there are auto, json, text")
    is_terminal = _is_terminal(stream)
    if chosen == "json" or (chosen == "auto" and not is_terminal):
        return _as_json
    is_coloured = (
        is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )
    return _as_coloured_text if is_coloured else _as_text


def _is_terminal(stream: TextIO | None) -> bool:
    """Return True if a stream is a terminal."""
    try:
        return stream is not None and stream.isatty()
    except (OSError, ValueError):
        return False


def _as_json(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    """Return one line of JSON, ASCII only: no byte of a value can act on a terminal."""
    ordered = {name: event.pop(name) for name in ("timestamp", "level", "event") if name in event}
    ordered.update(event)
    return _JSON.encode(ordered)


def _as_text(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    """Return `12:30:05.250 info     lease.acquired  command_id=cmd_1 attempt=1`."""
    return _text(event, "", "", "")


def _as_coloured_text(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    """Return an event as text, with the level in its colour and field names dimmed."""
    return _text(event, _COLOURS.get(str(event.get("level")), "\x1b[32m"), _DIM, _RESET)


def _text(event: MutableMapping[str, Any], colour: str, dim: str, reset: str) -> str:
    """Return an event as text; an exception follows on lines of its own."""
    clock = str(event.pop("timestamp", ""))[11:23]
    level = str(event.pop("level", ""))
    name = _printable(str(event.pop("event", "")))
    exception = str(event.pop("exception", ""))
    fields = " ".join(
        f"{dim}{_printable(name)}={reset}{_shown(value)}" for name, value in event.items()
    )
    line = f"{dim}{clock}{reset} {colour}{level:<8}{reset} {name}" + (
        f"  {fields}" if fields else ""
    )
    if not exception:
        return line
    return "\n".join([line, *("    " + _printable(part) for part in exception.splitlines())])


def _shown(value: Any) -> str:
    """Return a field's value as text, quoted if its end could not be seen otherwise."""
    text = str(value)
    return _printable(f'"{text}"' if not text or " " in text else text)


def _printable(text: str) -> str:
    """Return a text with its control and direction characters escaped."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _loss(render: structlog.typing.Processor, lines: int) -> Any:
    """Return the line that says how many lines were lost. The output itself writes it."""
    stamped = structlog.processors.TimeStamper(fmt="iso", utc=True)(
        None, "warning", {"level": "warning", "event": "log.dropped", "lines": lines}
    )
    return render(None, "warning", stamped)
