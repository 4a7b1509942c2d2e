"""Patterns of a policy: ECMA's meaning, and no pattern that takes for ever."""

from __future__ import annotations

import time

import pytest

from arc_agent.config.patterns import BadPattern, compile_pattern


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("b", "abc", True),
        ("^b", "abc", False),
        ("^abc$", "abc", True),
        ("^abc$", "abc\n", False),
        ("^abc$", "abc\nd", False),
        (r"^a\$$", "a$", True),
        ("^[$]$", "$", True),
        (r"^\d+$", "123", True),
        (r"^\d+$", "\u0661", False),
        ("^(?:ab|cd)e{2,3}$", "cdee", True),
        ("^[a-z]{1,64}$", "abc", True),
        ("^(?!root$)[a-z]+$", "root", False),
        ("^(?!root$)[a-z]+$", "rooted", True),
    ],
)
def test_a_pattern_means_what_json_schema_says(pattern: str, text: str, matches: bool) -> None:
    assert bool(compile_pattern(pattern).regex.search(text)) == matches


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a*)*",
        "(?:a|a)*$",
        "((a+))*",
        "(a+){2,}",
        "(a{1,}b)*",
        "(?i)abc",
        "(?P<n>a)",
        "(?#x)",
        r"(a)\1",
        r"\Aabc\Z",
        "a)",
        "(a",
        "[a",
        "*",
        "a{3}{4}{5}**",
    ],
)
def test_what_is_not_supported_or_could_take_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(BadPattern):
        compile_pattern(pattern)


@pytest.mark.parametrize(
    "pattern", ["a*a*a*a*a*b", ".*.*.*x", "^a*a*b$", "x*y", r"^\s*(.*)\s*$", "a{1,99}a{1,99}b"]
)
def test_the_longest_text_that_is_looked_at_takes_no_time(pattern: str) -> None:
    compiled = compile_pattern(pattern)
    text = "a" * compiled.max_chars

    started_at = time.process_time()
    compiled.regex.search(text)

    assert time.process_time() - started_at < 3
