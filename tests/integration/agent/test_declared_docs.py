"""The configuration of docs/declared-handlers.md: its schemas, and slips in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from arc_agent.cli.main import main
from tests.support.running_agent import running
from tests.support.scripted_server import ScriptedServer

PAGE = (Path(__file__).parents[3] / "docs" / "declared-handlers.md").read_text()
FILES = dict(re.findall(r"```\w+ file=(\S+)\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """The commands of the page, with a token that is there."""
    (tmp_path / "cache-token").write_text("Bearer of-the-cache\n")
    text = FILES["agent.yaml"].replace("/etc/arc", str(tmp_path))
    return yaml.safe_load(text)["handlers"]


async def test_senders_are_told_of_the_schemas(
    server: ScriptedServer, settings: dict[str, Any], tmp_path: Path
) -> None:
    server.send("numbers.list", {"last": 1})
    async with running(server.url, tmp_path, (), {"handlers": settings}):
        await server.response()

    handlers = {each["name"]: each for each in server.seen("agents")[0].json()["handlers"]}
    schema = handlers["orders.of-customer"]["paramsSchema"]
    assert schema["required"] == ["customer"]
    assert schema["properties"]["most"]["maximum"] == 100
    assert handlers["cache.purge"]["idempotent"] is False


@pytest.mark.parametrize(
    ("there", "here", "key"),
    [
        ("maximum: 1000", "multipleOf: 2", "handlers.exec.numbers.list.params.last.multipleOf"),
        (
            "{type: string, maxLength: 60}\n        deep",
            "{}\n        deep",
            "handlers.http.cache.pur",
        ),
        (":customer", ":nobody", "handlers.sql.orders.of-customer.statement"),
        ("cpu_seconds: 10", "cpu_seconds: 0", "handlers.exec"),
        ("method: POST", "method: POKE", "handlers.http"),
        ("statement: >-", "statements: >-", "handlers.sql"),
    ],
)
def test_a_slip_of_the_pen_is_refused_with_the_path_of_the_key(
    tmp_path: Path, there: str, here: str, key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert there in FILES["agent.yaml"]
    (tmp_path / "bad.yaml").write_text(FILES["agent.yaml"].replace(there, here))

    assert main(["check-config", str(tmp_path / "bad.yaml")]) == 2
    assert capfd.readouterr().err.startswith(f"error: {key}")
