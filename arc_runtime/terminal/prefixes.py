"""Prefixes of ids: the first characters name a thing as long as they name one alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

MIN_PREFIX: Final = 4
"""A shorter prefix is a slip: it may name another thing as soon as there are more."""
_LISTED: Final = 8


class PrefixError(ValueError):
    """A prefix that names no id, or more than one. `matches` are the ids that it names."""

    def __init__(self, message: str, matches: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.matches = matches


def id_of(prefix: str, ids: Iterable[str], kind: str) -> str:
    """Return the only id that begins with a prefix; an id itself is its own.

    `kind` names the thing in messages: `token`. Raises PrefixError, whose message lists the ids
    when there are several.
    """
    found = sorted({each for each in ids if each.startswith(prefix)})
    if prefix in found:
        return prefix
    if not found or not prefix:
        raise PrefixError(f"no such {kind}: {prefix}")
    if len(found) > 1:
        raise PrefixError(_several(prefix, found, kind), tuple(found))
    if len(_significant(prefix)) < MIN_PREFIX:
        raise PrefixError(
            f"{prefix} is too short for a prefix: give {MIN_PREFIX} characters of the {kind}'s id",
            tuple(found),
        )
    return found[0]


def _several(prefix: str, found: list[str], kind: str) -> str:
    """Return a message with the ids that a prefix names, an id a line."""
    lines = [f"{prefix} is the beginning of {len(found)} {kind}s; give more of the id:"]
    lines += found[:_LISTED]
    if len(found) > _LISTED:
        lines.append(f"and {len(found) - _LISTED} more")
    return "\n".join(lines)


def _significant(prefix: str) -> str:
    """Return a prefix without the kind in front of it: `1f2e` of `tok_1f2e`."""
    return prefix.rpartition("_")[2]
