"""`arc-agent`: run it, check its configuration.

Exit codes: 0 done; 1 it broke; 2 usage or configuration (design.md). argparse, because the parser
stays in memory as long as the agent runs: typer (with pydantic and rich) takes 14 MB, this nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from arc_agent import __version__
from arc_agent.cli import control, enrol_arguments, handlers, keys

_BROKEN: Final = 1
"""A full disk or a directory in use: the unit tries again, and it may have passed."""
_BAD: Final = 2
"""A configuration does not get right by trying again: the unit leaves it."""
_ADMINISTRATION: Final = {
    "install": "install the agent on this host, as a unit of systemd",
    "uninstall": "take that back",
    "upgrade": "go to another version of the program, and back when it does not come up",
}
"""Commands with a parser of their own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script; the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words and words[0] in _ADMINISTRATION:
        from arc_agent.cli import install  # what a running agent never needs

        return install.front().main(words)
    if enrol_arguments.has_token(words):
        _say(f"arc-agent: {enrol_arguments.WHY_NOT}")
        return _BAD
    given = _parser().parse_args(words)
    if given.command == "enrol":
        from arc_agent.cli import enrol

        try:
            return enrol.run(given)
        except Exception as error:
            return _refused(error)
    if given.command == "check-config":
        return _check(given.file)
    if given.command == "keys":
        return keys.run(given)
    if given.command in (*control.COMMANDS, *handlers.COMMANDS):
        module = control if given.command in control.COMMANDS else handlers
        try:
            return module.run(given)
        except Exception as error:
            return _refused(error)
    overrides: dict[str, Any] = {
        "server.url": given.server,
        "deployment": given.deployment,
        "server.token_file": given.token_file,
        "handlers.modules": given.handlers,
        "data_dir": given.data_dir,
    }
    if given.handlers:
        sys.path.insert(0, os.getcwd())  # who names a module by hand means the one here
    if given.command == "run-once":
        return _run_once(given, overrides)
    return _run(given.config, overrides)


def _parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(
        prog="arc-agent", description="Runs commands on a host that nobody can reach."
    )
    parser.add_argument("--version", action="version", version=f"arc-agent {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run", help="run until told to stop (SIGTERM)", description="Run until told to stop."
    )
    once = commands.add_parser(
        "run-once",
        help="run what is ready now, hand it in, and end",
        description="Run what is ready now, hand it in, and end; `run` does so for ever.",
    )
    once.add_argument("--wait", metavar="30s", help="how long to wait for something to be ready")
    for each in (run, once):
        _add_run(each)
    check = commands.add_parser(
        "check-config",
        help="check a configuration, handlers included",
        description="Check a configuration, handlers included, without running anything.",
    )
    check.add_argument("file", type=Path, metavar="F", help="the configuration (YAML)")
    for name, text in _ADMINISTRATION.items():
        commands.add_parser(name, help=text)
    enrol_arguments.add_to(commands)
    control.add_to(commands)
    keys.add_to(commands)
    handlers.add_to(commands)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    """Whose commands are run, and by what."""
    parser.add_argument("-c", "--config", type=Path, metavar="F", help="the configuration (YAML)")
    parser.add_argument("--server", metavar="URL", help="the server")
    parser.add_argument("--deployment", metavar="ID", help="whose commands are run")
    parser.add_argument("--token-file", metavar="F", help="a file that holds the bearer token")
    parser.add_argument(
        "--handlers",
        action="extend",
        nargs="+",
        metavar="MODULE",
        help="modules, or .py files, that hold handlers",
    )
    parser.add_argument("--data-dir", metavar="D", help="spool and temporary files")


def _check(file: Path) -> int:
    """Whether a configuration is good."""
    from arc_agent.work.live_config import LiveConfig, Source

    try:
        live = LiveConfig(Source(file=file, environ=os.environ, overrides={}))
    except Exception as error:
        return _refused(error)
    names = ", ".join(handler.name for handler in live.registry)
    _say(f"{file}: ok; {len(live.registry)} handlers: {names}")
    return 0


def _run(file: Path | None, overrides: dict[str, Any]) -> int:
    """The agent's whole life; the exit code."""
    from arc_runtime.startup.light_imports import import_aiohttp, import_structlog

    import_structlog()
    import_aiohttp()
    from arc_agent.agent import Agent
    from arc_agent.work.live_config import LiveConfig, Source

    try:
        live = LiveConfig(Source(file=file, environ=os.environ, overrides=overrides))
    except Exception as error:
        return _refused(error)
    live.configure_logs()
    try:
        live.check_host()
    except Exception as error:
        return _refused(error)

    async def live_and_end() -> int:
        agent = Agent(live)
        code = await agent.run()
        if agent.has_abandoned:
            sys.stderr.flush()
            os._exit(code)  # what ignores its cancellation would keep the process alive
        return code

    try:
        return asyncio.run(live_and_end())
    except Exception as error:
        return _refused(error)


def _run_once(given: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """What is ready now; the exit code."""
    from arc_agent.cli import run_once
    from arc_agent.work.live_config import LiveConfig, Source
    from arc_runtime.durations import parse_duration

    try:
        seconds = 0.0 if given.wait is None else parse_duration(given.wait)
    except ValueError as error:
        _say(f"arc-agent: --wait: {error}")
        return _BAD
    try:
        live = LiveConfig(Source(file=given.config, environ=os.environ, overrides=overrides))
        live.configure_logs()
        return run_once.run(live, seconds)
    except Exception as error:
        return _refused(error)


def _refused(error: Exception) -> int:
    """Say in one line what is wrong; anything unforeseen is raised on."""
    from arc_agent.guard.audit import AuditError
    from arc_agent.guard.used_signatures import NoncesError
    from arc_agent.handlers.lifespans import LifespanFailed
    from arc_agent.handlers.loading import ImportFailed
    from arc_agent.handlers.registry import HandlerError
    from arc_agent.host.control_socket import ControlError
    from arc_agent.host.data_dir import DataDirError
    from arc_agent.jobs.spool import SpoolError
    from arc_agent.net.token import TokenError
    from arc_agent.work.meter import MetricsError
    from arc_runtime.config.settings import SettingsError

    known = (
        SettingsError,
        TokenError,
        HandlerError,
        DataDirError,
        SpoolError,
        NoncesError,
        AuditError,
        ControlError,
        MetricsError,
    )
    if not isinstance(error, known):
        raise error
    if isinstance(error, ImportFailed | LifespanFailed) and error.report:
        _say(error.report.rstrip())
    _say(f"arc-agent: {error}")
    return _BROKEN if getattr(error, "may_pass", False) else _BAD


def _say(text: str) -> None:
    """A line for whoever started it."""
    sys.stderr.write(f"{text}\n")
