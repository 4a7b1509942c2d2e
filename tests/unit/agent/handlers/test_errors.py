"""Errors of a handler's own: details are text, and JSON text where they are not text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from arc_agent import CommandFailed


@dataclass
class Row:
    number: int
    at: datetime


@pytest.mark.parametrize(
    ("details", "text"),
    [
        ({"rows": [1, 2.5, None, True], "ü": "é"}, '{"rows":[1,2.5,null,true],"ü":"é"}'),
        ([Row(3, datetime(2026, 1, 2, tzinfo=UTC))], '[{"number":3,"at":"2026-01-02T00:00:00Z"}]'),
        ({"path": Path("/srv")}, '{"path":"/srv"}'),
        ({"error": OSError("boom")}, '{"error":"boom"}'),
        (7, "7"),
        (False, "false"),
        ("since noon", "since noon"),
        ("", ""),
        (None, None),
    ],
)
def test_details_are_text_or_json_text(details: Any, text: str | None) -> None:
    assert CommandFailed("CODE", "message", details).details == text
    assert CommandFailed("CODE", "message", details=details).details == text


def test_details_without_a_form_in_json_do_not_hide_the_error() -> None:
    circle: list[Any] = []
    circle.append(circle)

    error = CommandFailed("CODE", "message", details=circle)

    assert error.details == "[[...]]"
    assert CommandFailed("CODE", "m", {"name": "\udcff"}).details == "{'name': '\\udcff'}"


def test_a_failed_json_document_reads_back() -> None:
    details = {"failed": {"db-7": ["disk", "cpu"]}}

    text = CommandFailed("CODE", "message", details).details

    assert text is not None
    assert json.loads(text) == details
