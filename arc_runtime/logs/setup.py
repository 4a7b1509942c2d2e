"""Logging: events with fields, as JSON lines, as text on a terminal or as fields of the journal,
always without secrets.

Modules write `log = structlog.get_logger()` and `log.info("lease.acquired", command_id=…)`.
What libraries log through `logging`, and warnings, come out the same way.
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
from arc_runtime.logs.output import LogOutput, Output
from arc_runtime.logs.redaction import redact_fields

T = TypeVar("T")

Format = Literal["auto", "json", "text"]
LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

_RESET: Final = "\x1b[0m"
_DIM: Final = "\x1b[2m"
_COLOURS: Final = {
    "debug": _DIM,
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[31m",
}


def configure(
    format: Format = "auto",  # noqa: A002  # what the key in the configuration is called
    level: str = "info",
    stream: TextIO | None = None,
) -> Output:
    """Set up logging for the process; again at any time, for another level or format.

    `auto` is text on a terminal, fields in systemd's journal where that is what standard error
    leads to, and JSON lines elsewhere. `stream` is standard error unless given.
    A reader that is gone or does not read never stops the process: lines are dropped and counted.
    Returns the output, for who wants to close it. Raises ValueError for an unknown format or level.
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


def _lines(chosen: Format, stream: TextIO | None) -> tuple[structlog.typing.Processor, Output]:
    """How and where lines are written. Raises ValueError for an unknown format."""
    render = _renderer(chosen, stream)
    output = _in_use(LogOutput, stream) or LogOutput(stream)
    output.describe_loss(lambda lines: str(_loss(render, lines)))
    return render, output


def _journal(
    chosen: Format, stream: TextIO | None
) -> tuple[structlog.typing.Processor, Output] | None:
    """How and where events are sent to the journal; None when that is not what is read."""
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
    """The output in use when it is of this stream: loggers that were bound before go on with it."""
    factory = structlog.get_config()["logger_factory"]
    if not isinstance(factory, _Factory) or not factory.output.is_open_for(stream):
        return None
    return factory.output if isinstance(factory.output, kind) else None


class _Factory:
    """Makes structlog's innermost loggers, all on one output."""

    def __init__(self, output: Output) -> None:
        self.output = output

    def __call__(self, *_: Any) -> _Logger:
        """The innermost logger."""
        return _Logger(self.output)


class _Logger:
    """What structlog hands finished lines to, whatever their level."""

    def __init__(self, output: Output) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = output.write
        self.msg = self.log = self.failure = self.fatal = self.warn = self.exception = output.write


class _ThroughStructlog(logging.Handler):
    """Sends what libraries log the way of our own events."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record's text as an event. Never raises."""
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        try:
            text = record.getMessage()
        except Exception:  # a library's broken log call must not break its caller
            text = f"a message that cannot be formatted: {record.msg!r}"
        structlog.get_logger().log(level, text, logger=record.name, exc_info=record.exc_info)


def _redact(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """The processor that takes secrets out."""
    return redact_fields(event)


def _renderer(chosen: Format, stream: TextIO | None) -> structlog.typing.Processor:
    """The last processor: an event as one line."""
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
    """Whether a person looks at it."""
    try:
        return stream is not None and stream.isatty()
    except (OSError, ValueError):
        return False


def _as_json(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    """One line of JSON, ASCII only: no byte of a logged value can act on a terminal."""
    ordered = {name: event.pop(name) for name in ("timestamp", "level", "event") if name in event}
    ordered.update(event)
    return json.dumps(ordered)


def _as_text(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    """`12:30:05.250 info     lease.acquired  command_id=cmd_1 attempt=1`."""
    return _text(event, "", "", "")


def _as_coloured_text(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    """The same with the level in its colour and field names dimmed."""
    return _text(event, _COLOURS.get(str(event.get("level")), "\x1b[32m"), _DIM, _RESET)


def _text(event: MutableMapping[str, Any], colour: str, dim: str, reset: str) -> str:
    """An event as text; an exception follows on lines of its own."""
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
    """A field's value on a terminal: quoted when its end could not be seen otherwise."""
    text = str(value)
    return _printable(f'"{text}"' if not text or " " in text else text)


def _printable(text: str) -> str:
    """Text whose control and direction characters are shown as escapes, not acted on."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _loss(render: structlog.typing.Processor, lines: int) -> Any:
    """What tells that lines were lost; outside the usual way, by the output itself."""
    stamped = structlog.processors.TimeStamper(fmt="iso", utc=True)(
        None, "warning", {"level": "warning", "event": "log.dropped", "lines": lines}
    )
    return render(None, "warning", stamped)
