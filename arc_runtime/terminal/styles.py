"""Styles say where colours are shown, and which words have which.

A colour never says what no word says: in a pipe, under NO_COLOR (no-color.org) and on a terminal
without colours the words are all there is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import IO, Any, Final

BOLD: Final = "1"
DIM: Final = "2"
RED: Final = "31"
GREEN: Final = "32"
YELLOW: Final = "33"
CYAN: Final = "36"

DEFAULT_WIDTH: Final = 80
"""The width of a terminal that does not say how wide it is."""

_OF_STATES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("SUCCEEDED", "ok", "active", "healthy", "current"), GREEN),
    **dict.fromkeys(("FAILED", "EXPIRED", "stopped", "failed"), RED),
    **dict.fromkeys(("CANCELLED", "gone", "revoked", "expired", "used", "retired"), DIM),
    **dict.fromkeys(("DISPATCHED", "running", "starting"), CYAN),
    **dict.fromkeys(("PENDING", "PENDING_UPLOAD", "paused", "degraded", "waiting"), YELLOW),
}
"""The colours of states by their first word: well, ill, over, at work, waiting."""


def is_terminal(stream: IO[Any] | None) -> bool:
    """Return True if a standard stream is a terminal; it may be closed altogether."""
    return stream is not None and stream.isatty()


def has_colours(stream: IO[Any] | None) -> bool:
    """Return True if a stream shows colours."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return is_terminal(stream)


def styled(text: str, style: str | None) -> str:
    """Return text in a style, by the sequences of ECMA-48."""
    return f"\x1b[{style}m{text}\x1b[0m" if style and text else text


def style_of_state(text: str) -> str | None:
    """Return the style of a state, such as `paused until 14:00`; None for an unknown one."""
    return _OF_STATES.get(text.partition(" ")[0])


def width_of_terminal(stream: IO[Any] | None = None) -> int:
    """Return how many cells wide a terminal is; COLUMNS overrides it."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size((stream or sys.stdout).fileno()).columns or DEFAULT_WIDTH
    except (OSError, ValueError, AttributeError):  # no terminal, or a closed stream
        return DEFAULT_WIDTH
