"""The one look of help in all programs, whichever parser reads the command line.

Usage: arc-agent pause [OPTIONS]

  Take no more commands for a while

Options:
  --for DURATION  Pause for this long [default: until resume]

Examples:
  arc-agent pause --for 1h --note 'disk is replaced'
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from arc_runtime.terminal.styles import (
    BOLD,
    DEFAULT_WIDTH,
    has_colours,
    is_terminal,
    styled,
    width_of_terminal,
)

MAX_WIDTH: Final = 100
"""Longer lines are hard to read."""
_MAX_TERM: Final = 28
"""A longer term has a line of its own, and its text is below."""
_INDENT: Final = "  "


def help_page(
    usage: str,
    about: str,
    sections: Mapping[str, Sequence[tuple[str, str]]],
    *,
    epilog: str = "",
) -> str:
    """Return a page of help for the terminal that stdout is.

    `sections`: by title, terms with their texts. `epilog`: examples and the like, as it stands; its
    lines without an indent are titles.
    """
    is_coloured = has_colours(sys.stdout)
    # In a pipe a page is the same everywhere: shells export COLUMNS to what they start.
    width = min(width_of_terminal(), MAX_WIDTH) if is_terminal(sys.stdout) else DEFAULT_WIDTH
    lines = [*_usage(usage, width, is_coloured)]
    if about:
        lines += ["", *_wrapped(about, width, _INDENT)]
    for title, terms in sections.items():
        if terms:
            lines += ["", _title(f"{title}:", is_coloured), *_terms(terms, width)]
    if epilog:
        lines.append("")
        for line in epilog.strip("\n").splitlines():
            is_title = line.endswith(":") and not line.startswith(" ")
            lines.append(_title(line, is_coloured) if is_title else line)
    return "\n".join(lines) + "\n"


def examples(*lines: str) -> str:
    """Return an epilog of examples, one a line."""
    return "\n".join(["Examples:", *(f"{_INDENT}{line}" for line in lines)])


def _usage(usage: str, width: int, is_coloured: bool) -> Iterator[str]:
    """Yield the lines of the usage; the ones behind the first are indented."""
    first, *more = textwrap.wrap(
        f"Usage: {usage}", width, subsequent_indent=" " * 4, break_long_words=False
    )
    yield first.replace("Usage:", _title("Usage:", is_coloured), 1)
    yield from more


def _terms(terms: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    """Yield the lines of terms, their texts in a column of their own."""
    column = min(_MAX_TERM, max(len(term) for term, _ in terms)) + 2 * len(_INDENT)
    for term, text in terms:
        lines = _wrapped(text, width, " " * column) or [""]
        head = f"{_INDENT}{term}"
        if len(head) + len(_INDENT) <= column:
            yield f"{head:<{column}}{lines[0].strip()}".rstrip()
        else:
            yield head
            yield lines[0].rstrip()
        yield from lines[1:]


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    """Return the lines of a text; its own blank lines separate paragraphs."""
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        lines += [""] * bool(lines)
        lines += textwrap.wrap(
            " ".join(paragraph.split()),
            width,
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def _title(text: str, is_coloured: bool) -> str:
    return styled(text, BOLD) if is_coloured else text
