"""The tables of docs/operating.md: its figures, fields and events are those of a real agent."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from prometheus_client.parser import text_string_to_metric_families

from arc_agent import Context, handler
from arc_agent.config.reading import read
from arc_runtime.logs.journald import fields
from tests.support.running_agent import Start
from tests.support.scripted_server import ScriptedServer

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "operating.md").read_text()
FILES = dict(re.findall(r"```\w+ file=(\S+)\n(.*?)```", PAGE, re.DOTALL))


def table(first: str) -> list[str]:
    """The words in backticks of the first column below such a heading."""
    rows = PAGE[PAGE.index(f"| {first} | |") :].partition("\n\n")[0].splitlines()[2:]
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row.split("|")[1])]


async def test_figures_and_fields_are_those_of_a_real_agent(
    server: ScriptedServer, start: Start, logged: Any
) -> None:
    gate, begun = asyncio.Event(), asyncio.Event()

    @handler("tables.load")
    async def load(ctx: Context) -> None:
        ctx.progress(3, 10, "tables")
        begun.set()
        await gate.wait()

    agent = await start(server, load, metrics={"listen": "127.0.0.1:0"})
    server.send("tables.load")
    await begun.wait()

    gate.set()
    await server.response()
    (url,) = [each["url"] for each in logged if each["event"] == "metrics.listening"]
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        families = list(text_string_to_metric_families(await answer.text()))
    await agent.stop()

    told = {
        f"{family.name}_total" if family.type == "counter" else family.name: {
            label for sample in family.samples for label in sample.labels
        }
        - {"le"}
        for family in families
        if not family.name.endswith("_created")
    }
    told["arc_agent_commands_total"] = {"command", "outcome"}
    documented = {
        name: set(re.findall(r"\w+", given))
        for name, _, given in (figure.partition("{") for figure in table("figure"))
    }
    assert documented == told

    known = {field for event in logged for field in fields(dict(event), "")}
    assert set(table("field")) <= known | {"PRIORITY"}
    for field in re.findall(r"\bARC_[A-Z_]+", PAGE):
        assert field in known


def test_the_configurations_of_the_page_are_good(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(FILES["agent.yaml"])
    assert read(file, {}, {}).metrics.listen == "127.0.0.1:9180"

    figures = {name.partition("{")[0] for name in table("figure")}
    (group,) = yaml.safe_load(FILES["arc.rules.yaml"])["groups"]
    for rule in group["rules"]:
        used = re.findall(r"arc_agent_\w+", rule["expr"])
        assert used, rule
        assert set(used) <= figures


def test_the_events_of_the_page_are_logged_somewhere() -> None:
    source = "".join(path.read_text() for path in (ROOT / "arc_agent").rglob("*.py"))

    for event in table("event"):
        assert f'"{event}"' in source, event
