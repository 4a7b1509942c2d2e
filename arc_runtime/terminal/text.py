"""Foreign text on a terminal: its control characters are escaped, and it is measured in cells.

Host names, labels, notes and errors come from other machines. An escape sequence, a C1 control or
an override of the writing direction in them could hide or forge what a person reads.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

ELLIPSIS: Final = "…"

INVISIBLE: Final = (
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f"
)
"""Marks that change the direction or cut a line, characters without a width, lone surrogates."""
_UNSAFE: Final = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f-\x9f{INVISIBLE}]")
_UNSAFE_IN_JSON: Final = re.compile(rf"[\x7f-\x9f{INVISIBLE}]")
_BREAKS: Final = re.compile(r"\s*[\n\t]\s*")


def printable(text: str) -> str:
    """Return text with its control characters escaped; line feeds and tabs stay."""
    return _UNSAFE.sub(_escaped, text)


def json_for_terminal(text: str) -> str:
    """Return JSON that says the same, with what JSON lets through and a terminal obeys escaped."""
    return _UNSAFE_IN_JSON.sub(_escaped_in_json, text)


def on_one_line(text: str) -> str:
    """Return text with its control characters escaped and its line breaks as spaces."""
    return printable(_BREAKS.sub(" ", text.strip("\n\t")))


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, `1 command` or `3 commands`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def width_of(text: str) -> int:
    """Return how many cells of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_width_of_character, text))


def shortened(text: str, width: int) -> str:
    """Return a text that takes `width` cells at most; one that is cut ends in `…`."""
    if width_of(text) <= width:
        return text
    kept, room = "", width - 1
    for character in text:
        room -= _width_of_character(character)
        if room < 0:
            break
        kept += character
    return f"{kept.rstrip()}{ELLIPSIS}"


def padded(text: str, width: int) -> str:
    """Return a text with spaces behind it until it takes `width` cells."""
    return text + " " * (width - width_of(text))


def _width_of_character(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _escaped_in_json(found: re.Match[str]) -> str:
    """Return a character as JSON escapes it, as a pair of surrogates where it needs two."""
    data = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{data[at : at + 2].hex()}" for at in range(0, len(data), 2))
