"""The fields of log lines in all packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
PACKAGES = ("arc_agent", "arc_client", "arc_protocol", "arc_runtime", "arc_server")
OVERWRITTEN = {"level", "timestamp", "event", "exception"}
"""The names that the processors of arc_runtime/logs/setup.py set."""


def passed_keywords(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and keyword of each call that takes the name of an event first."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        first, function = node.args[0], node.func
        is_log = isinstance(function, ast.Attribute) and ast.unparse(function.value).endswith("log")
        is_event = isinstance(first, ast.Constant) and "." in str(first.value)
        if is_log or (is_event and isinstance(function, ast.Name)):
            yield from ((node.lineno, each.arg) for each in node.keywords if each.arg is not None)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_field_of_a_log_line_has_a_name_that_is_overwritten(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    assert [
        f"{file.relative_to(ROOT)}:{line}: {keyword}="
        for file in files
        for line, keyword in passed_keywords(ast.parse(file.read_text()))
        if keyword in OVERWRITTEN
    ] == []
