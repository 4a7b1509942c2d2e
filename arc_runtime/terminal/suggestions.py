"""Suggestions for a word that was mistyped."""

from __future__ import annotations

from collections.abc import Iterable


def no_such(kind: str, word: str, known: Iterable[str]) -> str:
    """Return that there is no thing of a name: `no such command: lst. Did you mean list?`."""
    return f"no such {kind}: {word}{suggestion(word, known)}"


def not_one_of(word: str, known: Iterable[str]) -> str:
    """Return that a value is not one of those there are: `x is not one of a, b`."""
    known = list(known)
    return f"{word} is not one of {', '.join(known)}{suggestion(word, known)}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `. Did you mean list?` to put behind a message; an empty text without a likely one."""
    likely = closest(word, known)
    return f". Did you mean {' or '.join(likely)}?" if likely else ""


def closest(word: str, known: Iterable[str]) -> list[str]:
    """Return the known words that look most like one, two at most, in upper or lower case."""
    # Imported here: the agent's process, which rarely mistypes, need not hold it.
    from difflib import get_close_matches

    by_folded = {each.casefold(): each for each in known}
    found = get_close_matches(word.casefold(), by_folded, n=2, cutoff=0.6)
    return [by_folded[each] for each in found]
