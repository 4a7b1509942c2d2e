"""The alert rules and the dashboard, read into what they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).parents[2] / "config"
ALERTS = CONFIG / "alerts.yaml"
ALERTS_TEST = CONFIG / "alerts.test.yaml"
DASHBOARD = CONFIG / "grafana-dashboard.json"

_FIGURE = re.compile(r"\b(?:arc_server|process)_[a-z_]+")
_LABELS = re.compile(r"([a-z]+)(?:=~|!=|=)\"")


def rules() -> list[dict[str, Any]]:
    """Every alert rule."""
    return [
        rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
    ]


def dashboard() -> dict[str, Any]:
    """The dashboard."""
    return json.loads(DASHBOARD.read_text())


def expressions() -> Iterator[str]:
    """Every expression of the rules and of the dashboard."""
    for rule in rules():
        yield rule["expr"]
    yield from _expressions_in(dashboard())


def _expressions_in(part: Any) -> Iterator[str]:
    if isinstance(part, list):
        for each in part:
            yield from _expressions_in(each)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key in ("expr", "query") and isinstance(value, str):
                yield value
            else:
                yield from _expressions_in(value)


def figures() -> set[str]:
    """Every figure that an expression names."""
    return {name for expression in expressions() for name in _FIGURE.findall(expression)}


def labels() -> set[str]:
    """Every label by which an expression selects."""
    return {name for expression in expressions() for name in _LABELS.findall(expression)}
