"""A SQL statement of the configuration and its parameters, `:name`.

Nothing inside texts, quoted names, comments, `::` casts and Postgres's dollar quotes is taken for a
parameter.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

_TOKEN: Final = re.compile(
    r"""
    (?P<dollar>\$(?P<tag>(?:[A-Za-z_][A-Za-z0-9_]*)?)\$.*?\$(?P=tag)\$)
  | (?P<text>[eE]'(?:[^'\\]|''|\\.)*' | '(?:[^']|'')*')
  | (?P<name>"(?:[^"]|"")*" | `(?:[^`]|``)*`)
  | (?P<line>--[^\n]*)
  | (?P<block>/\*.*?\*/)
  | (?P<cast>::|:=)
  | (?P<param>:[A-Za-z_][A-Za-z0-9_]*)
  | (?P<other>\?[0-9]*|[@$][A-Za-z0-9_]+)
  | (?P<end>;)
  | (?P<word>[A-Za-z_0-9][A-Za-z0-9_$]*)
  | (?P<space>\s+)
  | (?P<open>['"`] | /\*)
  | (?P<rest>.)
    """,
    re.VERBOSE | re.DOTALL,
)


class BadStatement(ValueError):
    """A statement cannot be used; the message says why."""


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """A statement in the forms of both databases."""

    named: str
    """The form of SQLite: `:name`."""
    numbered: str
    """The form of Postgres: `$1`."""
    names: tuple[str, ...]
    """The parameters in the order of their numbers."""


def read_statement(text: str, *, is_postgres: bool) -> Statement:
    """Read one statement.

    Raises BadStatement for none, for several, and for parameters of another form than `:name`.
    """
    names: list[str] = []
    named: list[str] = []
    numbered: list[str] = []
    has_ended = is_there = False
    for token in _TOKEN.finditer(text):
        kind, part = token.lastgroup or "", token[0]
        if kind == "tag":
            kind = "dollar"
        if kind in ("space", "line", "block"):
            part = " "
        elif kind == "end":
            has_ended = True
            continue
        elif has_ended:
            raise BadStatement("more than one statement")
        else:
            is_there = True
        if kind == "dollar" and not is_postgres:
            raise BadStatement("dollar quotes are Postgres's")
        if kind == "open":
            raise BadStatement(f"{part} is opened and not closed")
        if kind == "other" and not (is_postgres and part in ("?", *_OPERATORS)):
            raise BadStatement(f"{part}: a parameter is written :name")
        if kind == "param":
            name = part[1:]
            if name not in names:
                names.append(name)
            named.append(part)
            numbered.append(f"${names.index(name) + 1}")
            continue
        named.append(part)
        numbered.append(part)
    if not is_there:
        raise BadStatement("there is no statement")
    return Statement(
        named="".join(named).strip(), numbered="".join(numbered).strip(), names=tuple(names)
    )


_OPERATORS: Final = ("?|", "?&")
