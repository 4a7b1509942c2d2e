"""The regular expressions of a schema: a part of ECMA 262 (as in JSON Schema) that is safe to run.

A sender may be hostile: a pattern that could take exponential time is refused when it is read. `$`
matches the very end (Python's own also matches before a last newline), and `\\d`, `\\w` and `\\s`
are ASCII.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

_MAX_CHARS: Final = 4096
_MAX_STEPS: Final = 10_000_000
"""The worst case of one search: about 0.1 s, which blocks the event loop."""
_TOKEN: Final = re.compile(
    r"""
    (?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])
  | (?P<escape>\\.)
  | (?P<open>\((?:\?(?:[:=!]|<[=!]))?)
  | (?P<close>\))
  | (?P<repeat>[*+?]|\{\d*(?:,\d*)?\})
  | (?P<end>\$)
  | (?P<or>\|)
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_MANY: Final = 10
"""A repeat of more counts as endless."""


class BadPattern(ValueError):
    """A pattern is refused; the message says why."""


class Pattern(msgspec.Struct, frozen=True):
    """A compiled pattern."""

    regex: re.Pattern[str]
    max_chars: int
    """The longest text to search: a longer one could take too long."""


def compile_pattern(pattern: str) -> Pattern:
    """Compile a pattern. Raises BadPattern.

    A text of n characters and a pattern of k endless repeats (one more if it may begin anywhere)
    take n^k steps at worst. So the more repeats, the shorter the text that may be searched.
    """
    endless = 0 if pattern.startswith("^") else 1
    parts: list[str] = []
    for text, is_endless in _translated(pattern):
        parts.append(text)
        endless += is_endless
    try:
        regex = re.compile("".join(parts), re.ASCII)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadPattern(f"not a regular expression: {error}") from None
    return Pattern(regex, min(_MAX_CHARS, int(_MAX_STEPS ** (1 / max(1, endless)))))


def _translated(pattern: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a pattern in Python's form, with True for an endless repeat.

    Raises BadPattern.
    """
    # For each open group: True if it has an endless repeat or alternatives. A repeat of the group
    # must then not be endless: `(a+)+` takes time 2^n.
    risky = [False]
    closed: bool | None = None
    for token in _TOKEN.finditer(pattern):
        kind, text = token.lastgroup, token[0]
        was_closed, closed, is_endless = closed, None, False
        if kind == "open":
            if text == "(" and pattern.startswith("?", token.end()):
                raise BadPattern("flags, names and other extensions of groups are not supported")
            risky.append(False)
        elif kind == "close":
            if len(risky) == 1:
                raise BadPattern("a group is closed that was not opened")
            closed = risky.pop()
            risky[-1] |= closed
        elif kind == "or":
            risky[-1] |= len(risky) > 1
        elif kind == "repeat" and _is_endless(text):
            is_endless = True
            if was_closed:
                raise BadPattern(
                    "a repeated group must not hold repeats or alternatives: it could take too long"
                )
            risky[-1] = True
        elif kind == "escape" and text[1].isdigit():
            raise BadPattern("back references are not supported")
        elif kind == "escape" and text[1] in "AZzGpPkK":
            raise BadPattern(f"{text} is not supported")
        yield (r"\Z" if kind == "end" else text), is_endless


def _is_endless(repeat: str) -> bool:
    """Return True if a repeat counts as endless."""
    if repeat in "*+":
        return True
    if repeat == "?":
        return False
    least, comma, most = repeat.strip("{}").partition(",")
    bound = most if comma else least
    return not bound or int(bound) > _MANY
