"""Regular expressions of a policy: a part of ECMA 262's (as JSON Schema says), safe to run.

Params are an attacker's: what can take exponential time is refused when the policy is read. `$` is
the very end (Python's own also matches before a last newline), and `\\d`, `\\w`, `\\s` are ASCII.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

_MAX_CHARS: Final = 4096
_MAX_STEPS: Final = 10_000_000
"""What one search may take at worst: about 0.1 s, in which nothing else of the agent runs."""
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
"""A repeat of more than so many counts as without end."""


class BadPattern(ValueError):
    """A pattern that is not taken; the message says why."""


class Pattern(msgspec.Struct, frozen=True):
    """A pattern, ready to search with."""

    regex: re.Pattern[str]
    max_chars: int
    """Longer text must not be searched: it could take too long."""


def compile_pattern(pattern: str) -> Pattern:
    """A pattern to search with. Raises BadPattern.

    `n` characters and `k` repeats without end (one more for a pattern that may begin anywhere) take
    n^k steps at worst: the more of them, the shorter the text that is looked at.
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
    """The pattern in Python's spelling, part by part, and whether a part repeats without end.

    Raises BadPattern.

    `risky` says of each open group whether it repeats something without end or has alternatives:
    such a group must not itself be repeated without end (`(a+)+` takes time 2^n).
    """
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
                    "a repeated group must not hold repeats or alternatives: it could take for ever"
                )
            risky[-1] = True
        elif kind == "escape" and text[1].isdigit():
            raise BadPattern("back references are not supported")
        elif kind == "escape" and text[1] in "AZzGpPkK":
            raise BadPattern(f"{text} is not supported")
        yield (r"\Z" if kind == "end" else text), is_endless


def _is_endless(repeat: str) -> bool:
    """Whether a repeat may go on for long."""
    if repeat in "*+":
        return True
    if repeat == "?":
        return False
    least, comma, most = repeat.strip("{}").partition(",")
    bound = most if comma else least
    return not bound or int(bound) > _MANY
