"""The examples of README.md and docs/, typed as they stand, with real servers, agents and senders.

`python scripts/docs_examples.py --write` puts the outputs of today into the pages.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.docs_pages import pages, read_examples, typed_pages
from tests.support.docs_runs import play

PAGES = typed_pages()
FIRST = ("README", "quickstart")
"""Pages that each run of the suite types; `make test-docs` types all."""
LANGUAGES = {"console", "sh", "python", "yaml", "json", "toml", "ini", "nginx", "text"}
REASONS = {
    "is a part of a configuration of Prometheus",
    "needs the network",
    "needs root and systemd",
}
MOST_NOT_RUN = 18
TAME = ("arc-agent install", "arc-server install", "systemctl", "apt ", "sudo ")
"""What would change the machine that runs the tests."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[] if page.stem in FIRST else [pytest.mark.docs]) for page in PAGES],
    ids=[page.stem for page in PAGES],
)
def test_a_page_shows_what_its_examples_do(page: Path) -> None:
    played = play(page)

    assert "\n\n".join(map(str, played.differences)) == ""


def test_few_examples_are_not_run_and_their_reasons_are_known() -> None:
    examples = [example for page in pages() for example in read_examples(page.read_text())]

    reasons = [example.reason for example in examples if example.reason is not None]

    assert set(reasons) == REASONS
    assert len(reasons) <= MOST_NOT_RUN


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_every_example_has_a_language_and_leaves_the_machine_alone(page: Path) -> None:
    text = page.read_text()

    examples = read_examples(text)

    assert text.count("```") == 2 * len(examples)
    assert {example.language for example in examples} <= LANGUAGES
    for example in examples:
        if example.language in ("sh", "console") and example.reason is None:
            assert not [word for word in TAME if word in example.body], example.body


@pytest.mark.parametrize(
    ("page", "difference"),
    [
        ("```console\n$ echo hello\nhullo\n```\n", "hullo\n--- the program\nhello\n"),
        ("```console\n$ false\n```\n", "[exit code 1]"),
        ("```console\n$ cat <<X\n> a\n> X\na\nb\n```\n", "a\nb\n--- the program\na\n"),
        ("```sh\ntrue\nfor x in a; do\n  false\ndone\n```\n", "$ for x in a; do"),
        ("```python\nimport nowhere\n```\n", "ModuleNotFoundError"),
        ("```python file=a.py\nx = 1\n```\n\n```sh\npython b.py\n```\n", "can't open file"),
        ("```yaml\nhandlers: {exce: {}}\n```\n", "did you mean exec"),
        ("```console\n$ arc-agent run\nready\n```\n", "server.url: is required"),
    ],
)
def test_what_a_page_should_not_show_is_a_difference(
    page: str, difference: str, tmp_path: Path
) -> None:
    file = tmp_path / "page"
    file.write_text(page)

    played = play(file)

    (found,) = played.differences
    assert difference in str(found)


def test_parts_that_differ_each_time_and_parts_left_open_are_no_difference(tmp_path: Path) -> None:
    file = tmp_path / "page"
    file.write_text(
        "```console\n$ echo 'cmd_abc123 took 12 ms at 2026-11-29T10:00:00Z, pid 77,   and more'\n"
        "cmd_xyz987 took 3 s at 2025-01-01T00:00:00.123Z, pid 1, and …\n```\n"
    )

    assert play(file).differences == []


def test_the_outputs_of_today_are_put_into_a_page(tmp_path: Path) -> None:
    file = tmp_path / "page"
    file.write_text("Text.\n\n```console\n$ seq 2\n1\n$ echo a b\na …\n```\n\nMore.\n")

    assert play(file).text == (
        "Text.\n\n```console\n$ seq 2\n1\n2\n$ echo a b\na …\n```\n\nMore.\n"
    )
