"""Every table and every help of `arc-agent`, on terminals and in a pipe."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from arc_agent.cli.arguments import parser
from arc_agent.config.sections import AuditSection
from arc_agent.guard.audit_chain import AuditChain, Line
from arc_runtime.control_socket import Control, ControlRequest, Peer
from tests.support.screens import check_screens

AGENT = Path(sys.executable).with_name("arc-agent")
GOLDEN = Path(__file__).parent / "screens"
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("ARC_")}
IDS = [f"cmd_019{number}f3a2b4c{number}abcdefghijklmnop" for number in range(4)]
NOW = datetime(2026, 5, 4, 7, 30, 0, 120_000, tzinfo=UTC)


def commands() -> list[str]:
    """All commands, those below others too."""
    found: list[str] = []
    for name, command in subparsers(parser()).items():
        found += [name, *(f"{name} {part}" for part in subparsers(command))]
    return found


def subparsers(of: Any) -> Mapping[str, Any]:
    """The parsers of a parser's commands."""
    for action in of._actions:
        if isinstance(action.choices, dict):
            return action.choices
    return {}


def instant(**ahead: float) -> str:
    return (datetime.now(UTC) + timedelta(**ahead)).isoformat(timespec="seconds")


def waiting() -> list[dict[str, Any]]:
    """Commands that wait: signed by a sender with a name, by one without, by none."""
    return [
        {
            "id": IDS[number],
            "command": command,
            "attempt": 1,
            "rule": rule,
            "signed_by": key,
            "senders": senders,
            "since": instant(minutes=-12.5 - number),
            "until": instant(minutes=47.5 - number),
            "params": params,
            "params_bytes": size,
            "params_sha256": "5f0c" * 16,
        }
        for number, (command, rule, key, senders, params, size) in enumerate(
            [
                ("service.stop", "ask", "ops-2026-a", ["on-call"], '{"service": "sshd"}', 19),
                ("db.vacuum", "a rule\x1b[2J of a long name", "ops-2026-b", [], '{"a": 1}', 7_000),
                ("tables.import", "ask a person", None, [], None, 20),
            ]
        )
    ]  # fmt: skip


def status() -> dict[str, Any]:
    """The status of an agent at work."""
    return {
        "version": "0.1.0",
        "name": "db-7",
        "is_healthy": False,
        "degraded": [{"part": "disk", "reason": "/var/lib/arc-agent: 12 MiB free"}],
        "order": {"state": "paused", "until": instant(minutes=57.5), "note": "new disk"},
        "server": "https://arc.example.com",
        "contact": {"is_lost": False, "answered_seconds_ago": 3, "held_seconds": 25.0},
        "deployment": "acme-eu-1",
        "target": None,
        "up_seconds": 270_000,
        "done": 1204,
        "pid": 611,
        "credential": {"kind": "file", "file": "/etc/arc/token", "age_seconds": 1_050_000},
        "policy": {"file": "/etc/arc/policy.yaml", "rules": 3, "sha256": "5f0c" * 16},
        "handlers": ["arc.echo", "arc.ping", "tables.load"],
        "spool": {"count": 2, "bytes": 3_000, "max_bytes": 1 << 30, "oldest_seconds": 400},
        "max_concurrent": 4,
        "running": [
            {
                "id": IDS[3],
                "command": "tables.load",
                "attempt": 2,
                "state": "running",
                "for_seconds": 500,
                "lease_seconds_left": 56,
                "progress": {"done": 3, "total": 10, "text": "tables of the year before last"},
            }
        ],
        "approvals": [
            {name: each[name] for name in ("id", "command", "rule", "since", "until")}
            for each in waiting()
        ],
    }


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Path]:
    """A data directory with an audit log, and a control socket that gives fixed answers."""
    chain = AuditChain(tmp_path / "audit", AuditSection())
    chain.open()
    by = {"by": "alice", "by_uid": 0, "by_from": "loginuid"}
    who = {"command": "service.stop", "command_id": IDS[0]}
    chain.append(
        [
            Line("approval", {**who, "rule": "ask a person"}, NOW),
            Line("approved", {**who, "rule": "ask a person", **by}, NOW),
            Line("started", {**who, "signed_by": "ops-2026-a", "bytes": 20}, NOW),
            Line("ended", {"command_id": IDS[0], "outcome": "succeeded", "bytes": 8}, NOW),
            Line("paused", {**by, "note": "new disk", "seconds": 3600}, NOW),
        ],
        syncs=False,
    )
    chain.close()

    async def answer_status(_request: ControlRequest, _peer: Peer) -> Mapping[str, Any]:
        return status()

    async def answer_approvals(_request: ControlRequest, _peer: Peer) -> Mapping[str, Any]:
        return {"approvals": waiting()}

    control = Control(tmp_path / "control.sock")
    control.verb("status", answer_status)
    control.verb("approvals", answer_approvals)
    await control.open()
    yield tmp_path
    await control.close()


async def check(name: str, line: str, place: Path | None = None, **more: Any) -> None:
    environ = ENVIRON | {
        "ARC_AGENT_SERVER_URL": "https://arc.example.com",
        "ARC_AGENT_DEPLOYMENT": "acme-eu-1",
        "ARC_AGENT_DATA_DIR": str(place or "/nonexistent"),
        "ARC_AGENT_CONTROL_SOCKET": str((place or Path("/nonexistent")) / "control.sock"),
    }
    await asyncio.to_thread(
        check_screens,
        GOLDEN / f"{name.replace(' ', '-')}.txt",
        [AGENT, *line.split()],
        environ,
        ids=IDS,
        **more,
    )


async def test_every_help_is_as_it_was_and_has_an_example() -> None:
    lines = ["", *commands()]
    program = [sys.executable, "-m", "tests.support.all_helps", "arc_agent.cli.main", *lines]

    await asyncio.to_thread(check_screens, GOLDEN / "helps.txt", program, ENVIRON)

    shown = (GOLDEN / "helps.txt").read_text().split("──── ")[1].split("\n$ ")[1:]
    assert len(shown) == len(lines)
    assert [each for each in shown if "\nExamples:\n  arc-agent " not in each] == []


@pytest.mark.parametrize(
    "line",
    [
        "status",
        "approvals",
        "approve",
        "approve cmd_019",
        "deny cmd_none",
        "status -o wied",
    ],
)
async def test_a_screen_is_as_it_was_and_its_ids_are_whole(place: Path, line: str) -> None:
    await check(line, line, place)


@pytest.mark.parametrize("line", ["status -o wide", "approvals -o wide", "audit show"])
async def test_what_is_wider_than_the_terminal_is_whole(place: Path, line: str) -> None:
    await check(line, line, place, fits=False)


@pytest.mark.parametrize(
    "line", ["aprove", "audit shw", "pause --for soon", "status --sokcet x", "audit show -n many"]
)
async def test_a_mistyped_command_line_says_what_was_meant(line: str) -> None:
    await check(line, line)


async def test_no_agent_is_an_error_of_the_same_form() -> None:
    await check("no agent", "status")
