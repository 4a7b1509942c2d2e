"""The one form of an error in all programs.

    error: no such command: lst. Did you mean list?
      See arc --help

It goes to stderr: what is wrong, in one sentence without a full stop at its end; then, indented,
the details and what to do about it. On a terminal sentences are wrapped between words.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from arc_runtime.terminal.styles import BOLD, RED, has_colours, styled
from arc_runtime.terminal.text import printable
from arc_runtime.terminal.wrapping import wrapped

_TITLE: Final = "error:"


def print_error(what: str, *, details: str | None = None, next_steps: Sequence[str] = ()) -> None:
    """Write an error to stderr. Lines of `what` behind the first are details.

    Control characters are escaped: much of it comes from other machines. `details` keep their
    lines, which may be laid out.
    """
    first, *more = printable(what).splitlines() or [""]
    sentence = wrapped(f"{_TITLE} {first}", sys.stderr)
    if has_colours(sys.stderr):
        sentence = sentence.replace(_TITLE, styled(_TITLE, f"{BOLD};{RED}"), 1)
    lines = [f"  {line}" for line in (*more, *printable(details or "").splitlines())]
    steps = [wrapped(f"  {step}", sys.stderr) for step in map(printable, next_steps)]
    sys.stderr.write("".join(f"{line}\n" for line in (sentence, *lines, *steps)))
    sys.stderr.flush()
