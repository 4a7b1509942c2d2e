"""Output goes to stdout for results and to stderr for all else, laid out on terminals only."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import msgspec

from arc_client.cli.explain import Explanation, as_record
from arc_protocol.codec import UNREADABLE
from arc_protocol.errors import ArcError
from arc_runtime.terminal.errors import print_error
from arc_runtime.terminal.styles import has_colours, is_terminal, style_of_state, styled
from arc_runtime.terminal.text import json_for_terminal, printable
from arc_runtime.terminal.times import age, instant
from arc_runtime.terminal.wrapping import wrapped


class Format(StrEnum):
    """The forms of a table."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"


SHOWN_BYTES: Final = 1024 * 1024
"""Results up to this size are shown on a terminal; a larger one belongs in a file or a pipe."""

_NAME_WIDTH: Final = 12
"""The column of the names of facts."""
_NOT_TEXT: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def show_message(text: str) -> None:
    """Write a line for the person to stderr, with its control characters escaped."""
    lines = [wrapped(line, sys.stderr) for line in printable(text).split("\n")]
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    sys.stderr.flush()


def show_prompt(text: str) -> None:
    """Write a question to stderr on a line of its own; the answer is typed behind it."""
    sys.stderr.write(f"\n{printable(text)}")
    sys.stderr.flush()


def print_line(text: str) -> None:
    """Write a line to stdout."""
    write_bytes(f"{text}\n".encode())


def show_error(error: ArcError, explanation: Explanation, *, as_json: bool) -> None:
    """Write an error to stderr: for a person, or as one JSON object on a line."""
    if as_json:
        record = msgspec.json.encode(as_record(error, explanation)).decode()
        sys.stderr.write(f"{json_for_terminal(record)}\n")
        sys.stderr.flush()
        return
    print_error(
        explanation.what, details=laid_out(explanation.details), next_steps=explanation.next_steps
    )


def laid_out(details: str | None) -> str | None:
    """Return the details of an error: JSON laid out, other text as it is."""
    try:
        return msgspec.json.format(details or "", indent=2)
    except UNREADABLE:
        return details


def show_json(value: Any) -> None:
    """Write a value as JSON to stdout: laid out on a terminal, on one line in a pipe."""
    write_result(msgspec.json.encode(value))


def write_result(data: bytes, *, is_raw: bool = False) -> None:
    """Write a result that is held in memory to stdout.

    In a pipe JSON is written as it is, with a line feed after it; other bytes are written exactly
    as they are. On a terminal JSON is laid out, and a JSON string is written as its text.
    `is_raw`: a JSON string is written as its text in a pipe too. Raises UnfitForTerminal for bytes
    that would garble a terminal.
    """
    is_shown = is_terminal(sys.stdout)
    try:
        value = msgspec.json.decode(data)
    except UNREADABLE:
        if not is_shown:
            write_bytes(data)
            return
        text = _text(data)
        write_bytes((text if text.endswith("\n") else f"{text}\n").encode())
        return
    if isinstance(value, str) and (is_shown or is_raw):
        print_line((printable(value) if is_shown else value).removesuffix("\n"))
    elif is_shown:
        _print_json(msgspec.json.format(data, indent=2).decode())
    else:
        write_bytes(data if data.endswith(b"\n") else data + b"\n")


def write_bytes(data: bytes) -> None:
    """Write bytes to stdout at once. Raises OSError."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


class UnfitForTerminal(Exception):
    """A result that a terminal cannot show."""


def _text(data: bytes) -> str:
    """Return bytes as text that a terminal obeys nothing of. Raises UnfitForTerminal."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise UnfitForTerminal from None
    if _NOT_TEXT.search(text):
        raise UnfitForTerminal
    return text


def _print_json(text: str) -> None:
    """Print JSON in colours, with what JSON lets through and a terminal obeys escaped."""
    from rich.console import Console
    from rich.highlighter import JSONHighlighter
    from rich.text import Text

    shown = Text(json_for_terminal(text))
    JSONHighlighter().highlight(shown)
    Console().print(shown, soft_wrap=True)


def show_facts(facts: Mapping[str, str | datetime | None]) -> None:
    """Write a fact a line to stdout; a fact without a value is left out."""
    now = datetime.now(UTC)
    for name, value in facts.items():
        if not value:
            continue
        if isinstance(value, datetime):
            value = f"{instant(value)}  {age(value, now)}"
        first, *more = printable(value).splitlines()
        style = style_of_state(first) if name == "state" and has_colours(sys.stdout) else None
        print_line(f"{name:<{_NAME_WIDTH}}{styled(first, style)}")
        for line in more:
            print_line(f"{'':<{_NAME_WIDTH}}{line}")
