"""One name means one thing, in the packages and in the pages."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGES = ("arc_protocol", "arc_runtime", "arc_server", "arc_agent", "arc_client")
TWICE = {"CommandExpired", "CommandFailed"}
"""The error as a handler raises it, or as the protocol names it, and as a sender catches it."""


def test_each_public_class_name_means_one_thing() -> None:
    homes: defaultdict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    homes[node.name].append(str(file.relative_to(ROOT)))

    assert {name: places for name, places in homes.items() if len(places) > 1}.keys() == TWICE


def test_an_enrolment_token_is_called_by_that_name() -> None:
    texts = [
        *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py")),
        *ROOT.glob("docs/**/*.md"),
        ROOT / "README.md",
        ROOT / "SECURITY.md",
    ]

    # `enrol-token` is the command.
    wrong = [str(file) for file in texts if re.search(r"enrol tokens?\b", file.read_text(), re.I)]
    assert wrong == []
