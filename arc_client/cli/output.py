"""Output goes to stdout for results and to stderr for all else, laid out on terminals only."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any, Final

import msgspec

from arc_client.cli.explain import Explanation, as_record, printable
from arc_protocol.errors import ArcError

SHOWN_BYTES: Final = 1024 * 1024
"""Results up to this size are shown on a terminal; a larger one belongs in a file or a pipe."""

_INVISIBLE: Final = re.compile("[\x7f-\x9f]")
_NOT_TEXT: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def show_message(text: str) -> None:
    """Write a line for the person to stderr."""
    sys.stderr.write(f"{text}\n")
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
        show_message(msgspec.json.encode(as_record(error, explanation)).decode())
        return
    show_message(f"error: {printable(explanation.what)}")
    for line in printable(explanation.details or "").splitlines():
        show_message(f"  {line}")
    for step in explanation.next_steps:
        show_message(f"  {step}")


def show_json(value: Any) -> None:
    """Write a value as JSON to stdout: laid out on a terminal, on one line in a pipe."""
    write_result(msgspec.json.encode(value))


def write_result(data: bytes) -> None:
    """Write a result that is held in memory to stdout.

    JSON is written as it is, with a line feed after it; on a terminal it is laid out. Other bytes
    are written exactly as they are. Raises UnfitForTerminal for bytes that would garble a terminal.
    """
    is_laid_out = is_terminal(sys.stdout)
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if not is_laid_out:
            write_bytes(data)
            return
        text = _text(data)
        write_bytes((text if text.endswith("\n") else f"{text}\n").encode())
        return
    if not is_laid_out:
        write_bytes(data if data.endswith(b"\n") else data + b"\n")
        return
    _print_json(msgspec.json.format(data, indent=2).decode())


def is_terminal(stream: IO[Any] | None) -> bool:
    """Return True if a standard stream is a terminal; it may be closed altogether."""
    return stream is not None and stream.isatty()


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
    """Print JSON in colours, with the control characters that JSON lets through escaped."""
    from rich.console import Console
    from rich.highlighter import JSONHighlighter
    from rich.text import Text

    shown = Text(_INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))
    JSONHighlighter().highlight(shown)
    Console().print(shown, soft_wrap=True)


def show_facts(facts: Mapping[str, str | None]) -> None:
    """Write a fact a line to stdout; a fact without a value is left out."""
    for name, value in facts.items():
        if value:
            lines = printable(value).splitlines()
            print_line(f"{name:<12}{lines[0]}")
            for line in lines[1:]:
                print_line(f"{'':<12}{line}")


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to stdout: laid out on a terminal, in plain whole columns in a pipe."""
    rows = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    if is_terminal(sys.stdout):
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, no_wrap=column == "ID", overflow="fold")
        for row in rows:
            table.add_row(*row)
        Console(highlight=False, markup=False).print(table)
        return
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for row in [columns, *rows]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print_line(line.rstrip())
