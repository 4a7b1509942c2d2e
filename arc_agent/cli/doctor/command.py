"""The command `arc-agent doctor`: run all checks and show their findings.

It leases no command. It asks the server for `/readyz`, for a renewal of no leases, for no leases
(a request that our server refuses only after it has judged the token), and, without a signature, at
the routes of its bodies. It removes the file that it writes to test the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from arc_agent.cli.doctor import host, server
from arc_agent.cli.doctor.finding import CHECK_SECONDS, TEXT_CELL, Finding, bad, ok, untested
from arc_agent.cli.output import DONE, NO, UNUSABLE, begin_log, fail, show, show_sentence
from arc_agent.cli.place import config_file, environ_of, overrides_of, socket_of
from arc_agent.work.live_config import Source, exposed_secrets
from arc_runtime.control_socket import ControlDenied, ControlRefused, NotListening, ask
from arc_runtime.logs.redaction import mask_known


def run(given: argparse.Namespace) -> int:
    """Run all checks; return the exit code. Raises SettingsError without a configuration."""
    begin_log()
    overrides = overrides_of(given)
    source = Source(file=config_file(given), environ=environ_of(given.unit), overrides=overrides)
    try:
        findings = asyncio.run(_show(given, source, socket_of(given)))
    except (ValueError, OSError) as error:
        return fail(UNUSABLE, error)
    if given.json:
        show(mask_known(json.dumps(msgspec.to_builtins(findings), indent=2)))
    return NO if any(each.state == "bad" for each in findings) else DONE


async def _show(given: argparse.Namespace, source: Source, control: Path) -> list[Finding]:
    """Run all checks, and show each finding as it comes. Raises SettingsError."""
    findings: list[Finding] = []
    async for each in _examine(source, control, given.unit):
        findings.append(each)
        if not given.json:
            show_sentence(each.line(), indent=TEXT_CELL)
    return findings


async def _examine(source: Source, control: Path, unit: str) -> AsyncIterator[Finding]:
    """Run all checks. Raises SettingsError."""
    config = source.read()
    yield ok("config", str(source.file or "environment and command line"))
    for line in exposed_secrets(config, source.file):
        yield bad("secrets", line)
    status = await asyncio.to_thread(_status, control)
    yield _running(status)
    async for each in server.examine(source, config):
        yield each
    yield _long_poll(status)
    running = None if isinstance(status, str) else status
    async for each in host.examine(source, config, unit, running):
        yield each


# The running agent


def _status(control: Path) -> dict[str, Any] | str:
    """Return the status of the running agent, or the reason why there is none."""
    try:
        return ask(control, {"do": "status"}, timeout_seconds=CHECK_SECONDS)
    except NotListening:
        return "it does not run"
    except (ControlDenied, ControlRefused) as error:
        return str(error)


def _running(status: dict[str, Any] | str) -> Finding:
    """Check that an agent runs and is healthy."""
    if isinstance(status, str):
        return untested("agent", f"{status}; the checks below do not need it")
    if status["is_healthy"]:
        return ok("agent", f"runs, pid {status['pid']}, healthy")
    reasons = "; ".join(f"{each['part']}: {each['reason']}" for each in status["degraded"])
    return bad("agent", f"runs, pid {status['pid']}, but {reasons}")


def _long_poll(status: dict[str, Any] | str) -> Finding:
    """Check that the server holds requests. Only a request that may lease a command is held."""
    if isinstance(status, str):
        return untested(
            "long poll",
            "the server holds only a request that may lease a command; with the agent stopped"
            " `arc-agent run-once --wait 30s` sends one",
        )
    held = status["contact"]["held_seconds"]
    if held is None:
        return untested("long poll", "the server has held no poll of the agent yet; try later")
    if held < 1.0:
        return bad(
            "long poll",
            f"the server answers after {held:g} s: it does not hold requests, and the agent asks in"
            " intervals (poll.interval_seconds)",
        )
    return ok("long poll", f"the agent's last poll was held {held:g} s")
