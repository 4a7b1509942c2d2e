"""The command line of `arc-agent`: all commands and their options.

A running agent keeps these parsers in memory as long as it lives. So they import nothing of the
commands, and they are argparse's: typer, with pydantic and rich, takes 14 MB.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from arc_agent.version import __version__
from arc_runtime.config.arguments import duration

ADMINISTRATION: Final = {
    "install": "Install the agent on this host as a systemd unit",
    "uninstall": "Remove the agent from this host",
    "upgrade": "Upgrade the agent, and roll back if the new version does not start",
}
"""Commands with parsers of their own (arc_runtime/install)."""
_CONTROL: Final = {
    "approve": "Let a command run that waits for approval",
    "deny": "Deny a command that waits for approval",
    "approvals": "List the commands that wait for approval",
    "pause": "Take no more commands for a while; running commands go on",
    "resume": "Take commands again after pause or stop-all",
    "stop-all": "Stop all running commands, and take no more until resume",
}
AUDIT_EVENTS: Final = (
    "file", "opened", "closed", "policy",
    "denied", "signature_refused", "queued", "approval", "approved", "refused",
    "started", "ended", "paused", "resumed", "stopped_all", "available", "lost",
    "leased",
)  # fmt: skip
"""The events of the audit log: docs/audit.md. `leased` is of versions before 0.2."""
_PARAMS: Final = "JSON, @FILE, or - for standard input (default: {})"
_TOKEN: Final = re.compile(
    r"arc_(?:enrol|access|bootstrap|admin|operator|sender|agent|viewer)_[A-Za-z0-9_-]{16}", re.ASCII
)


def has_token(words: Sequence[str]) -> bool:
    """Return True if one of ARC's tokens is on the command line, where every user may read it."""
    return any(_TOKEN.search(word) for word in words)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    root = argparse.ArgumentParser(
        prog="arc-agent", description="Run commands for an ARC server on this host"
    )
    root.add_argument("--version", action="version", version=f"arc-agent {__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    for name, text in ADMINISTRATION.items():
        commands.add_parser(name, help=text)
    _add_enrol(commands)
    _add_status(commands)
    _add_control(commands)
    _add_policy(commands)
    _add_audit(commands)
    _add_keys(commands)
    _add_handlers(commands)
    return root


def _add(commands: Any, name: str, text: str, more: str = "") -> argparse.ArgumentParser:
    """Add a command with its help; `more` stands in its own help only."""
    description = f"{text}. {more}" if more else text
    added: argparse.ArgumentParser = commands.add_parser(name, help=text, description=description)
    return added


def _add_config(command: argparse.ArgumentParser) -> None:
    """Add the option of the configuration file."""
    command.add_argument("-c", "--config", type=Path, metavar="FILE", help="Configuration (YAML)")


def _add_run(commands: Any) -> None:
    """Add run, run-once and check-config."""
    run = _add(commands, "run", "Run the agent until it is stopped (SIGTERM)")
    once = _add(commands, "run-once", "Run the commands that are ready, deliver them, and exit")
    once.add_argument(
        "--wait", type=duration, default=0.0, metavar="DURATION",
        help="Wait for a first command, for 30s, 5m, …",
    )  # fmt: skip
    for command in (run, once):
        _add_config(command)
        command.add_argument("--server", metavar="URL", help="Server")
        command.add_argument(
            "--deployment", metavar="ID", help="Deployment whose commands run here"
        )
        command.add_argument("--token-file", metavar="FILE", help="File with the bearer token")
        command.add_argument(
            "--handlers",
            action="extend",
            nargs="+",
            metavar="MODULE",
            help="Modules or .py files with handlers",
        )
        command.add_argument("--data-dir", metavar="DIR", help="Spool and temporary files")
    check = _add(commands, "check-config", "Check a configuration, including its handlers")
    check.add_argument("file", type=Path, metavar="FILE", help="Configuration (YAML)")


def _add_enrol(commands: Any) -> None:
    """Add enrol."""
    enrol = _add(commands, "enrol", "Get this agent a credential of its own for an enrolment token")
    enrol.add_argument("--server", metavar="URL", help="Server")
    enrol.add_argument("--deployment", metavar="ID", help="Refuse a token of another deployment")
    enrol.add_argument(
        "--enrol-token-file",
        type=Path,
        metavar="FILE",
        help="File with the enrolment token (default: standard input, or a prompt)",
    )
    _add_config(enrol)
    enrol.add_argument("--data-dir", type=Path, metavar="DIR", help="Data directory of the agent")
    enrol.add_argument("--replace", action="store_true", help="Replace an existing credential")


def _add_place(command: argparse.ArgumentParser) -> None:
    """Add the options that name an agent of this host."""
    _add_config(command)
    command.add_argument("--socket", type=Path, metavar="SOCKET", help="Control socket")
    command.add_argument("--data-dir", type=Path, metavar="DIR", help="Data directory of the agent")


def _add_status(commands: Any) -> None:
    """Add status and doctor."""
    status = _add(
        commands,
        "status",
        "Show the state of a running agent",
        "Exit code 0: healthy; 1: degraded; 3: no agent answers",
    )
    doctor = _add(
        commands,
        "doctor",
        "Check everything that an agent depends on",
        "Takes no command. Exit code 1: a check failed",
    )
    doctor.add_argument("--unit", default="arc-agent.service", help="systemd unit of the agent")
    for command in (status, doctor):
        _add_place(command)
        command.add_argument("--json", action="store_true", help="Print JSON")


def _add_control(commands: Any) -> None:
    """Add the commands for a running agent."""
    for name, text in _CONTROL.items():
        command = _add(commands, name, text)
        _add_place(command)
        if name in ("approve", "deny"):
            command.add_argument("id", metavar="ID", help="Command id")
        if name == "pause":
            command.add_argument(
                "--for",
                dest="seconds",
                type=duration,
                metavar="DURATION",
                help="Resume after 1h, 30m, … (default: until resume)",
            )
        if name in ("approve", "deny", "pause", "stop-all"):
            command.add_argument("--note", metavar="TEXT", help="Reason, for the log and senders")


def _add_policy(commands: Any) -> None:
    """Add policy test."""
    policy = _add(commands, "policy", "Try a policy")
    parts = policy.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    test = _add(
        parts,
        "test",
        "Show which rule decides about a command, and why",
        "Exit code 0: allowed; 1: denied; 4: needs approval",
    )
    test.add_argument("file", type=Path, metavar="FILE", help="Policy (YAML)")
    test.add_argument(
        "--command", required=True, dest="name", metavar="NAME", help="Name of the command"
    )
    test.add_argument("--params", default="{}", metavar="JSON", help=_PARAMS)
    test.add_argument("--key", metavar="ID", help="Key that signs the command")
    test.add_argument("--at", metavar="TIME", help="Time, 2026-05-04T09:00+02:00 (default: now)")


def _add_audit(commands: Any) -> None:
    """Add audit verify and audit show."""
    audit = _add(commands, "audit", "Verify or show the audit log")
    parts = audit.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    verify = _add(parts, "verify", "Find every edit, removal and reordering in the audit log")
    verify.add_argument(
        "--expect", metavar="SHA256", help="Require the line of this hash, kept elsewhere"
    )
    show = _add(parts, "show", "Show the lines of the audit log")
    show.add_argument("--command-id", metavar="ID", help="Show the lines of one command")
    show.add_argument(
        "--event", action="append", choices=AUDIT_EVENTS, metavar="NAME",
        help="Show the lines of this event; repeatable",
    )  # fmt: skip
    show.add_argument(
        "--since", type=duration, metavar="DURATION", help="Show the lines of the last 2h, 7d, …"
    )
    show.add_argument("-n", "--lines", type=int, metavar="N", help="Show the last N lines")
    show.add_argument(
        "-f", "--follow", action="store_true", help="Go on with the lines that are written"
    )
    show.add_argument("--json", action="store_true", help="Print JSON")
    for command in (verify, show):
        command.add_argument(
            "directory", type=Path, nargs="?", metavar="DIR", help="Directory of the audit log"
        )
        _add_place(command)


def _add_keys(commands: Any) -> None:
    """Add keys new and keys public."""
    keys = _add(commands, "keys", "Create or show this host's key for sealed params")
    parts = keys.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    new = _add(parts, "new", "Create a private key in a file (0600), and print its public line")
    new.add_argument("name", metavar="NAME", help="Name of this host for senders")
    new.add_argument("--out", type=Path, metavar="FILE", help="Key file (default: NAME.key)")
    public = _add(parts, "public", "Print the public line of a private key")
    public.add_argument("file", type=Path, metavar="FILE", help="Key file")


def _add_handlers(commands: Any) -> None:
    """Add test-handler and new-handler."""
    test = _add(
        commands,
        "test-handler",
        "Run one handler here, without a server",
        "Prints its result. Exit code 1: the handler failed",
    )
    test.add_argument("name", metavar="NAME", help="Name of the command")
    test.add_argument("--params", default="{}", metavar="JSON", help=_PARAMS)
    _add_config(test)
    test.add_argument(
        "--handlers",
        action="extend",
        nargs="+",
        metavar="MODULE",
        help="Modules or .py files with handlers",
    )
    test.add_argument(
        "--timeout",
        type=duration,
        default=60.0,
        metavar="DURATION",
        help="Time limit (default: 60s)",
    )
    test.add_argument(
        "--no-policy", action="store_true", help="Run the handler even if the policy denies it"
    )
    new = _add(
        commands,
        "new-handler",
        "Create a package with a handler and its test",
        "Creates the directory NAME",
    )
    new.add_argument("name", metavar="NAME", help="Name of small letters, digits and hyphens")
    new.add_argument(
        "--dir", type=Path, default=Path(), metavar="DIR", help="Parent directory (default: .)"
    )
