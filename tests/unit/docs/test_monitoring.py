"""Alert rules, dashboard and docs/operating-a-server.md agree with each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.monitoring import ALERTS_TEST, dashboard, figures, rules

PAGE = Path(__file__).parents[3] / "docs" / "operating-a-server.md"


def sections() -> dict[str, str]:
    """The sections of the page by their titles."""
    _, *parts = re.split(r"^#+ (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_each_alert_has_a_paragraph_that_says_what_to_do(rule: dict[str, Any]) -> None:
    text = sections()[rule["alert"]]

    assert "**Do:**" in text
    assert len(text.split()) > 25
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"]


def test_no_paragraph_is_about_an_alert_that_is_gone() -> None:
    assert {title for title in sections() if title.startswith("Arc")} == {
        rule["alert"] for rule in rules()
    }


def test_each_alert_is_tested_to_fire_and_to_stay_quiet() -> None:
    tested = [
        (each["alertname"], bool(each["exp_alerts"]))
        for test in yaml.safe_load(ALERTS_TEST.read_text())["tests"]
        for each in test["alert_rule_test"]
    ]

    for rule in rules():
        assert (rule["alert"], True) in tested
        assert (rule["alert"], False) in tested


def test_the_page_tells_of_each_figure_that_an_alert_or_the_dashboard_names() -> None:
    text = PAGE.read_text()

    told = {re.sub(r"_(?:bucket|sum|count)$", "", name) for name in figures()}
    left_out = {"arc_server_read_queue_age_seconds"}  # `…_read_queue_…`
    assert sorted(name for name in told - left_out if name not in text) == []


def test_the_dashboard_asks_one_data_source_that_its_user_chooses() -> None:
    board = dashboard()

    sources = [each for each in board["templating"]["list"] if each["type"] == "datasource"]
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert [source["name"] for source in sources] == ["datasource"]
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    assert all(panel["description"] for panel in panels)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
