"""Messages that are longer than a line of the terminal."""

from __future__ import annotations

import io

import pytest

from arc_runtime.terminal.errors import print_error
from arc_runtime.terminal.table import print_note
from arc_runtime.terminal.wrapping import wrapped

KEY = "01a22bed-f84a-73fe-b810-685f247b67df"


class Screen(io.StringIO):
    """A terminal of 40 columns."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    return Screen()


def test_a_line_breaks_between_words_and_goes_on_indented(screen: Screen) -> None:
    assert wrapped("  one two " + "three " * 6 + KEY, screen) == (
        f"  one two three three three three three\n    three\n    {KEY}"
    )
    assert wrapped("  as   aligned", screen) == "  as   aligned"


def test_a_line_in_a_pipe_stays_whole() -> None:
    assert wrapped("word " * 60, io.StringIO()) == "word " * 60


def test_errors_and_notes_break_no_word_of_a_terminal(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", screen)

    print_error(
        "what is wrong takes more than one line here",
        details='{"laid": "out, and not wrapped, however long it is"}',
        next_steps=[f"To send it again: the same with --key {KEY}"],
    )
    print_note("a note that takes more than one line, too")

    assert screen.getvalue() == (
        "error: what is wrong takes more than one\n  line here\n"
        '  {"laid": "out, and not wrapped, however long it is"}\n'
        f"  To send it again: the same with --key\n    {KEY}\n"
        "(a note that takes more than one line,\n too)\n"
    )
