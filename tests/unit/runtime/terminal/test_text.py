"""Foreign text is escaped, measured and shortened."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_runtime.terminal.text import on_one_line, printable, shortened, width_of


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
