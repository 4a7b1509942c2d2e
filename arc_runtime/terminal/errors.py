"""The one form of an error in all programs.

    error: no such command: lst. Did you mean list?
      See arc --help

It goes to stderr: what is wrong, in one sentence without a full stop at its end; then, indented,
the details and what to do about it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from arc_runtime.terminal.styles import BOLD, RED, has_colours, styled
from arc_runtime.terminal.text import printable


def print_error(what: str, *, details: str | None = None, next_steps: Sequence[str] = ()) -> None:
    """Write an error to stderr. Lines of `what` behind the first are details.

    Control characters are escaped: much of it comes from other machines.
    """
    first, *more = printable(what).splitlines() or [""]
    title = styled("error:", f"{BOLD};{RED}") if has_colours(sys.stderr) else "error:"
    lines = [*more, *printable(details or "").splitlines(), *next_steps]
    text = "".join(f"{line}\n" for line in (f"{title} {first}", *(f"  {line}" for line in lines)))
    sys.stderr.write(text)
    sys.stderr.flush()
