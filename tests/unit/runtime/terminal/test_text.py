"""Foreign text is escaped, measured and shortened."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_protocol.messages.base import VISIBLE
from arc_runtime.terminal.text import (
    json_for_terminal,
    on_one_line,
    printable,
    shortened,
    width_of,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\x9bb", r"a\x9bb"),
        ("a\x7fb\rc", r"a\x7fb\x0dc"),
        ("invoice\u202egnp.exe", r"invoice\u202egnp.exe"),
        ("a\u2066b\u2028c\ufeff", r"a\u2066b\u2028c\ufeff"),
        ("\U000e0041", r"\U000e0041"),
        ("\udcff", r"\udcff"),
        ("[/x] [link=y]", "[/x] [link=y]"),
        ("grün 日本 👩\u200d🔬", "grün 日本 👩\u200d🔬"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
    ],
)
def test_control_characters_are_escaped_and_all_else_stays(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(codec=None)))
def test_json_for_a_terminal_says_the_same_and_obeys_nothing(text: str) -> None:
    shown = json_for_terminal(json.dumps({text: text}, ensure_ascii=False))

    assert json.loads(shown) == {text: text}
    assert printable(shown) == shown


def test_a_name_may_have_no_character_that_a_terminal_escapes() -> None:
    for code in (*range(0x10000), *range(0xE0000, 0xE0200)):
        character = chr(code)
        is_refused = re.fullmatch(VISIBLE, character) is None
        is_escaped = printable(character) != character or character in "\n\t"
        assert is_refused == is_escaped or 0xD800 <= code <= 0xDFFF, hex(code)


def test_line_breaks_become_spaces_where_there_is_one_line() -> None:
    assert on_one_line("one\n  two\tthree\n") == "one two three"


@pytest.mark.parametrize(
    ("text", "width"), [("abc", 3), ("grün", 4), ("日本", 4), ("e\u0301", 1), ("", 0)]
)
def test_a_text_is_measured_in_cells(text: str, width: int) -> None:
    assert width_of(text) == width


@given(st.text(), st.integers(1, 50))
def test_a_shortened_text_fits_and_shows_that_it_was_cut(text: str, width: int) -> None:
    cut = shortened(text, width)

    assert width_of(cut) <= width
    assert cut == text or cut.endswith("…")
