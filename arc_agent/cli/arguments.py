"""The command line of `arc-agent`: all commands and their options.

A running agent keeps these parsers in memory as long as it lives. So they import nothing of the
commands, and they are argparse's: typer, with pydantic and rich, takes 14 MB.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from arc_agent.version import __version__
from arc_runtime.config.arguments import duration
from arc_runtime.terminal.argparse_programs import Parser

ADMINISTRATION: Final = {
    "install": "Install the agent on this host as a systemd unit",
    "uninstall": "Remove the agent from this host",
    "upgrade": "Upgrade the agent, and roll back if the new version does not start",
}
"""Commands with parsers of their own (arc_runtime/install)."""
_CONTROL: Final = {
    "approve": (
        "Let a command run that waits for approval",
        "arc-agent approve cmd_7f3a",
        "arc-agent approve          # asks, if one command waits",
    ),
    "deny": (
        "Deny a command that waits for approval",
        "arc-agent deny cmd_7f3a --note 'not before the release'",
    ),
    "approvals": ("List the commands that wait for approval", "arc-agent approvals"),
    "pause": (
        "Take no more commands for a while; running commands go on",
        "arc-agent pause --for 1h --note 'new disk'",
        "arc-agent pause",
    ),
    "resume": ("Take commands again after pause or stop-all", "arc-agent resume"),
    "stop-all": (
        "Stop all running commands, and take no more until resume",
        "arc-agent stop-all --note 'incident 7'",
    ),
}
"""The commands for a running agent: their help and examples."""
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


def parser() -> Parser:
    """Return the parser of the whole command line."""
    root = Parser(
        prog="arc-agent",
        description="Run commands for an ARC server on this host",
        epilog=_examples(
            "arc-agent run --server https://arc.example.com --deployment acme-eu-1",
            "arc-agent status",
            "arc-agent doctor",
        ),
    )
    root.add_argument(
        "--version",
        action="version",
        version=f"arc-agent {__version__}",
        help="Show the version",
    )
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


def _add(commands: Any, name: str, text: str, *examples: str, more: str = "") -> Parser:
    """Add a command with its help and examples; `more` stands in its own help only."""
    description = f"{text}. {more}" if more else text
    added: Parser = commands.add_parser(
        name, help=text, description=description, epilog=_examples(*examples)
    )
    return added


def _examples(*lines: str) -> str:
    """Return an epilog of examples. help_page.examples is not imported: few runs show help."""
    return "\n  ".join(["Examples:", *lines])


def _add_config(command: Parser) -> None:
    """Add the option of the configuration file."""
    command.add_argument("-c", "--config", type=Path, metavar="FILE", help="Configuration (YAML)")


def _add_run(commands: Any) -> None:
    """Add run, run-once and check-config."""
    run = _add(
        commands,
        "run",
        "Run the agent until it is stopped (SIGTERM)",
        "arc-agent run --config /etc/arc/agent.yaml",
        "arc-agent run --server http://127.0.0.1:8484 --deployment acme-eu-1",
    )
    once = _add(
        commands,
        "run-once",
        "Run the commands that are ready, deliver them, and exit",
        "arc-agent run-once --config /etc/arc/agent.yaml --wait 30s",
    )
    once.add_argument(
        "--wait", type=duration, default=0.0, metavar="DURATION",
        help="Wait for a first command, for 30s, 5m, …",
    )  # fmt: skip
    for command in (run, once):
        _add_config(command)
        _add_run_options(command)
    check = _add(
        commands,
        "check-config",
        "Check a configuration, including its handlers",
        "arc-agent check-config /etc/arc/agent.yaml",
    )
    check.add_argument("file", type=Path, metavar="FILE", help="Configuration (YAML)")


def _add_run_options(command: Parser) -> None:
    """Add the options that override the configuration of an agent that runs."""
    command.add_argument("--server", metavar="URL", help="Server")
    command.add_argument("--deployment", metavar="ID", help="Deployment whose commands run here")
    command.add_argument("--token-file", metavar="FILE", help="File with the bearer token")
    command.add_argument(
        "--handlers",
        action="extend",
        nargs="+",
        metavar="MODULE",
        help="Modules or .py files with handlers",
    )
    command.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="Data directory: spool, audit log, key"
    )


def _add_enrol(commands: Any) -> None:
    """Add enrol."""
    enrol = _add(
        commands,
        "enrol",
        "Get this agent a credential of its own for an enrolment token",
        "arc-agent enrol --server https://arc.example.com --enrol-token-file t",
        "arc-agent enrol --config /etc/arc/agent.yaml < enrol.token",
    )
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


def _add_place(command: Parser, *, has_socket: bool = True) -> None:
    """Add the options that name an agent of this host."""
    _add_config(command)
    if has_socket:
        command.add_argument("--socket", type=Path, metavar="SOCKET", help="Control socket")
    command.add_argument("--data-dir", type=Path, metavar="DIR", help="Data directory of the agent")


def _add_status(commands: Any) -> None:
    """Add status and doctor."""
    status = _add(
        commands,
        "status",
        "Show the state of a running agent",
        "arc-agent status",
        "arc-agent status --config agent.yaml --json",
        more="Exit code 0: healthy; 1: degraded; 3: no agent answers",
    )
    doctor = _add(
        commands,
        "doctor",
        "Check everything that an agent depends on",
        "arc-agent doctor",
        "arc-agent doctor --server https://arc.example.com --deployment acme-eu-1",
        more="Takes no command. Exit code 1: a check failed",
    )
    doctor.add_argument("--unit", default="arc-agent.service", help="systemd unit of the agent")
    _add_place(status)
    _add_output(status)
    _add_config(doctor)
    _add_run_options(doctor)
    doctor.add_argument("--socket", type=Path, metavar="SOCKET", help="Control socket")
    doctor.add_argument("--json", action="store_true", help="Print JSON")


def _add_output(command: Parser) -> None:
    """Add the options of the form of a table."""
    command.add_argument(
        "-o",
        "--output",
        choices=("table", "wide", "json"),
        default="table",
        help="Form: wide shows every column and whole instants",
    )
    command.add_argument("--json", action="store_true", help="Print JSON, as -o json does")


def _add_control(commands: Any) -> None:
    """Add the commands for a running agent."""
    for name, (text, *examples) in _CONTROL.items():
        command = _add(commands, name, text, *examples)
        _add_place(command)
        if name in ("approve", "deny"):
            command.add_argument(
                "id", metavar="ID", nargs="?",
                help="Command id, or the beginning of it; without it, ask at the terminal",
            )  # fmt: skip
        if name == "approvals":
            _add_output(command)
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
    policy = _add(
        commands,
        "policy",
        "Try a policy",
        "arc-agent policy test policy.yaml --command disk.usage",
    )
    parts = policy.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    test = _add(
        parts,
        "test",
        "Show which rule decides about a command, and why",
        "arc-agent policy test policy.yaml --command disk.usage",
        "arc-agent policy test policy.yaml --command restart --key ops-2026-a",
        more="Exit code 0: allowed; 1: denied; 4: needs approval",
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
    audit = _add(
        commands,
        "audit",
        "Verify or show the audit log",
        "arc-agent audit verify",
        "arc-agent audit show --since 2h",
    )
    parts = audit.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    verify = _add(
        parts,
        "verify",
        "Find every edit, removal and reordering in the audit log",
        "arc-agent audit verify",
        "arc-agent audit verify /var/lib/arc-agent/audit",
    )
    verify.add_argument(
        "--expect", metavar="SHA256", help="Require the line of this hash, kept elsewhere"
    )
    show = _add(
        parts,
        "show",
        "Show the lines of the audit log",
        "arc-agent audit show --since 2h --event denied --event refused",
        "arc-agent audit show -n 20 --follow",
        "arc-agent audit show --command-id cmd_7f3a",
    )
    show.add_argument(
        "--command-id", metavar="ID", help="Show one command, by its id or the beginning"
    )
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
        _add_place(command, has_socket=False)


def _add_keys(commands: Any) -> None:
    """Add keys new and keys public."""
    keys = _add(
        commands,
        "keys",
        "Create or show this host's key for sealed params",
        "arc-agent keys new db-7",
        "arc-agent keys public db-7.key",
    )
    parts = keys.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    new = _add(
        parts,
        "new",
        "Create a private key in a file (0600), and print its public line",
        "arc-agent keys new db-7 --out /etc/arc/db-7.key",
    )
    new.add_argument("name", metavar="NAME", help="Name of this host for senders")
    new.add_argument("--out", type=Path, metavar="FILE", help="Key file (default: NAME.key)")
    public = _add(
        parts,
        "public",
        "Print the public line of a private key",
        "arc-agent keys public /etc/arc/db-7.key",
    )
    public.add_argument("file", type=Path, metavar="FILE", help="Key file")


def _add_handlers(commands: Any) -> None:
    """Add test-handler and new-handler."""
    test = _add(
        commands,
        "test-handler",
        "Run one handler here, without a server",
        "arc-agent test-handler disk.usage --config agent.yaml",
        "arc-agent test-handler reports.daily --handlers my_reports --params '{}'",
        more="Prints its result. Exit code 1: the handler failed",
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
        "arc-agent new-handler disk-usage",
        more="Creates the directory NAME",
    )
    new.add_argument("name", metavar="NAME", help="Name of small letters, digits and hyphens")
    new.add_argument(
        "--dir", type=Path, default=Path(), metavar="DIR", help="Parent directory (default: .)"
    )
