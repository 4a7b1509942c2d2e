"""The one form of an error in all programs.

    error: no such command: lst. Did you mean list?
      See arc --help

It goes to stderr: what is wrong, in one sentence without a full stop at its end; then, indented,
the details and what to do about it. On a terminal the sentence is wrapped between words.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from arc_runtime.terminal.styles import (
    BOLD,
    RED,
    has_colours,
    is_terminal,
    styled,
    width_of_terminal,
)
from arc_runtime.terminal.text import printable

_TITLE: Final = "error:"


def print_error(what: str, *, details: str | None = None, next_steps: Sequence[str] = ()) -> None:
    """Write an error to stderr. Lines of `what` behind the first are details.

    Control characters are escaped: much of it comes from other machines.
    """
    first, *more = printable(what).splitlines() or [""]
    sentence = _wrapped(f"{_TITLE} {first}")
    if has_colours(sys.stderr):
        sentence = sentence.replace(_TITLE, styled(_TITLE, f"{BOLD};{RED}"), 1)
    lines = [*more, *printable(details or "").splitlines(), *map(printable, next_steps)]
    sys.stderr.write("".join(f"{line}\n" for line in (sentence, *(f"  {line}" for line in lines))))
    sys.stderr.flush()


def _wrapped(text: str) -> str:
    """Return text with line feeds between its words where the terminal's lines end."""
    if not is_terminal(sys.stderr):
        return text
    import textwrap

    return textwrap.fill(
        text,
        width_of_terminal(sys.stderr),
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
