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
    # Imported here: the agent's process, which rarely mistypes, need not hold it.
    from difflib import get_close_matches

    by_folded = {each.casefold(): each for each in known}
    likely = get_close_matches(word.casefold(), by_folded, n=1)
    return f". Did you mean {by_folded[likely[0]]}?" if likely else ""
