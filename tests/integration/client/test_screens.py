"""Every table and every help of `arc`, on terminals and in a pipe."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_server import FakeServer, StoredCommand, one_kind
from tests.support.screens import check_screens, on_terminal
from tests.support.shell import ARC, environment

pytestmark = one_kind
GOLDEN = Path(__file__).parent / "screens"
COMMANDS = [
    ("SUCCEEDED", "reports.generate", "acme-eu-1", 300, {}),
    ("FAILED", "tables.import", "acme-eu-1", 400, {"code": "HANDLER_ERROR"}),
    ("FAILED", "db.vacuum", "acme-us-west-production-2", 92_000, {"code": "CANCELLED"}),
    ("DISPATCHED", "db.vacuum", "acme-eu-1", 20_000, {"cancelRequested": True}),
    ("PENDING_UPLOAD", "images.resize[/x]", "acme-eu-1", 5_000, {}),
    ("PENDING", "a\x1b[2J\u202eb", "acme-eu-1", 400_000, {}),
]
IDS = [f"cmd_019{number}f3a2b4c" + f"{number}abcdefghijklmnop"[:17] for number in range(6)]
AGENT_IDS = [f"agent-{number}-0f1e2d3c4b5a69788796a5b4c3d2e1f0" for number in range(4)]
SCHEMA = {
    "type": "object",
    "required": ["month"],
    "properties": {
        "month": {"type": "string", "description": "The month, as 2026-10", "minLength": 7},
        "format": {"enum": ["csv", "parquet", "xlsx"], "default": "csv"},
        "filters": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "column": {"type": "string", "description": "A column of the source table"}
                },
            },
        },
    },
}


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def stored(command_id: str, number: int) -> StoredCommand:
    state, name, deployment, age, more = COMMANDS[number]
    command = StoredCommand(command_id, {"deploymentId": deployment, "command": name}, state)
    more = dict(more)
    if "code" in more:
        command.response = {
            "status": "error",
            "code": more.pop("code"),
            "message": "the disk of db-1 is full",
            "details": '{"path": "/var/lib", "free": 0}',
        }
    command.facts = {"createdAt": ago(age), **more}
    if state in ("SUCCEEDED", "FAILED"):
        command.ended.set()
        command.facts |= {"dispatchedAt": ago(age - 1), "completedAt": ago(age - 61.5)}
    return command


@pytest.fixture(autouse=True)
def furnished(server: FakeServer) -> None:
    """Commands in all states, and agents that are well, ill and paused."""
    for number in reversed(range(len(COMMANDS))):
        server.commands[IDS[number]] = stored(IDS[number], number)
    hosts = [
        "db-1.eu.acme.example",
        "db-2.eu.acme.example",
        "edge-17[link=http://x].acme.example",
        "old",
    ]
    statuses: list[dict[str, Any]] = [
        {},
        {"status": {"state": "paused", "note": "the disk is replaced, back after lunch"}},
        {"status": {"state": "degraded", "note": "clock is 40 s ahead"}},
        {"isGone": True},
    ]
    server.agents = [
        {
            "agentId": agent_id,
            "deploymentId": "acme-eu-1",
            "target": {"resourceId": "default", "resourceType": "daemon"},
            "version": "1.4.0",
            "hostname": host,
            "handlers": [
                {
                    "name": "reports.generate",
                    "description": "Generate the report of a month, and mail it to the owners",
                    "idempotent": True,
                    "timeoutSeconds": 300,
                    "paramsSchema": SCHEMA,
                },
                {"name": "db.vacuum", "description": "Vacuum the database"},
            ],
            "firstSeenAt": ago(90_000),
            "lastSeenAt": ago(200),
            "holding": [],
            **status,
        }
        for agent_id, host, status in zip(AGENT_IDS, hosts, statuses, strict=True)
    ]
    server.receivers = [{"deploymentId": "beta-1", "lastSeenAt": ago(4_000)}]


@pytest.mark.parametrize(
    "line",
    [
        "list",
        "list --state cancelled",
        "list --limit 3",
        "agents",
        "agents --handlers",
        f"status {IDS[1]}",
        f"status {IDS[2]}",
        f"cancel {IDS[0]}",
        "status cmd_none",
        "list --deployment acme-eu1",
        "agents --deployment acme-eu1",
        "describe acme-eu-1 report.generate",
        "describe acme-eu1 reports.generate",
        "status cmd_019",
        "list --state canceled",
        "lst",
        "invoke acme-eu-1 db.vacuum --time 5s",
        f"wait {IDS[1]}",
    ],
)
async def test_a_screen_is_as_it_was_and_its_ids_are_whole(server: FakeServer, line: str) -> None:
    await check(server, line)


@pytest.mark.parametrize(
    "line", ["list -o wide", "agents -o wide", "describe acme-eu-1 reports.generate"]
)
async def test_what_is_wider_than_the_terminal_is_whole(server: FakeServer, line: str) -> None:
    await check(server, line, fits=False)


@pytest.mark.parametrize(
    "command",
    [
        *["", "invoke", "wait", "status", "events", "list", "cancel", "retry", "agents"],
        *["describe", "show"],
        *["keys", "keys new", "keys public"],
    ],
)
async def test_a_help_is_as_it_was_and_has_an_example(server: FakeServer, command: str) -> None:
    text = await check(server, f"{command} --help".strip())

    assert "\nExamples:\n  arc " in text


async def test_events_are_as_they_were(server: FakeServer) -> None:
    await server.say(IDS[0], "reading [/x] the \x1b[2Jtables", progress={"done": 3.0, "total": 4.0})

    await check(server, f"events {IDS[0]}")


async def test_a_terminal_without_colours_gets_none(server: FakeServer) -> None:
    command = [*ARC, "list"]
    environ = environment(server.url)

    shown = await asyncio.to_thread(on_terminal, command, environ, 100)
    plain = await asyncio.to_thread(on_terminal, ["env", "NO_COLOR=1", *command], environ, 100)

    assert "\x1b[32mSUCCEEDED\x1b[0m" in shown
    assert "\x1b" not in plain


async def check(server: FakeServer, line: str, *, fits: bool = True) -> str:
    """Check the screens of a line of `arc`; return the golden text."""
    name = "_".join(word.strip("-").replace("/", "") for word in line.split())
    for number, each in enumerate(IDS):
        name = name.replace(each, f"id{number}")
    golden = GOLDEN / f"{name}.txt"
    await asyncio.to_thread(
        check_screens,
        golden,
        [*ARC, *line.split()],
        environment(server.url),
        ids=[*IDS, *AGENT_IDS],
        fits=fits,
    )
    return golden.read_text()
