"""The form of errors, and suggestions in them."""

from __future__ import annotations

import pytest

from arc_runtime.terminal.errors import print_error
from arc_runtime.terminal.suggestions import suggestion


def test_an_error_is_a_sentence_with_details_and_next_steps_below(
    capfd: pytest.CaptureFixture[str],
) -> None:
    print_error(
        "no such host: a\x1b[2Jb\nthe second line",
        details="more\nof it",
        next_steps=["Try 'a\u202eb' again"],
    )

    assert capfd.readouterr().err == (
        "error: no such host: a\\x1b[2Jb\n  the second line\n  more\n  of it\n"
        "  Try 'a\\u202eb' again\n"
    )


@pytest.mark.parametrize(
    ("word", "suggested"),
    [
        ("lst", ". Did you mean list?"),
        ("success", ". Did you mean SUCCEEDED?"),
        ("agent", ". Did you mean agents?"),
        ("quite different", ""),
    ],
)
def test_a_mistyped_word_gets_the_likeliest(word: str, suggested: str) -> None:
    assert suggestion(word, ["list", "agents", "SUCCEEDED", "invoke"]) == suggested
