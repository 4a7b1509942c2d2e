"""The examples of README.md and docs/, typed as they stand, with real servers, agents and senders.

`python scripts/docs_examples.py --write` puts the outputs of today into the pages.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.docs_pages import pages, read_examples
from tests.support.docs_runs import play

PAGES = [page for page in pages() if page.stem != "protocol"]
"""The walk of docs/protocol.md has a test of its own."""
LANGUAGES = {"console", "sh", "python", "yaml", "json", "toml", "ini", "nginx", "text"}
REASONS = {"needs the network", "needs root and systemd"}
MOST_NOT_RUN = 14
TAME = ("arc-agent install", "arc-server install", "systemctl", "apt ", "sudo ")
"""What would change the machine that runs the tests."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
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
