"""`arc-agent approve`, `pause`, `stop-all`, `policy test`, `audit verify`: for people on the host.

Exit codes as in design.md: 0 done; 1 no (nothing of that id waits, the policy denies, the audit log
is broken); 2 usage or configuration; 3 no agent answers; 4 not allowed. `policy test` says 4 when a
person would have to approve.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

_DONE: Final = 0
_NO: Final = 1
_BAD: Final = 2
_NOT_THERE: Final = 3
_NOT_ALLOWED: Final = 4
_USUAL_CONFIG: Final = Path("/etc/arc/agent.yaml")
_USUAL_SOCKETS: Final = (
    Path("/run/arc-agent/control.sock"),
    Path("/var/lib/arc-agent/control.sock"),
)
_SHOWN_PARAMS_CHARS: Final = 200


def add_to(commands: Any) -> None:
    """Add these commands to the parser's."""
    status = commands.add_parser(
        "status",
        help="what a running agent is about",
        description="What it is about. Exit code 0: healthy; 1: degraded; 3: it does not run.",
    )
    _add_place(status)
    status.add_argument("--json", action="store_true", help="for programs")
    doctor = commands.add_parser(
        "doctor",
        help="try everything that an agent depends on",
        description="Try everything that an agent depends on; it takes no command. Exit code 1:"
        " something is wrong.",
    )
    _add_place(doctor)
    doctor.add_argument("--unit", default="arc-agent.service", help="its unit of systemd")
    doctor.add_argument("--json", action="store_true", help="for programs")
    for name, text in {
        "approve": "let a command run that waits for approval",
        "deny": "deny a command that waits for approval",
        "approvals": "what waits for approval",
        "pause": "take on no more commands for a while; what runs goes on",
        "resume": "take on commands again, after pause and stop-all",
        "stop-all": "end every command that runs, and take on none until resume",
    }.items():
        parser = commands.add_parser(name, help=text, description=text)
        _add_place(parser)
        if name in ("approve", "deny"):
            parser.add_argument("id", metavar="ID", help="the command's id")
        if name == "pause":
            parser.add_argument(
                "--for", dest="duration", metavar="1h", help="how long; default: until resume"
            )
        if name in ("approve", "deny", "pause", "stop-all"):
            parser.add_argument("--note", metavar="TEXT", help="why, for the log and for senders")
    policy = commands.add_parser("policy", help="try the host's policy", description="Policy.")
    tests = policy.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    test = tests.add_parser(
        "test",
        help="which rule decides about a command, and why",
        description="Which rule decides. Exit code 0: allowed; 1: denied; 4: needs approval.",
    )
    test.add_argument("file", type=Path, metavar="FILE", help="the policy (YAML)")
    test.add_argument("--command", required=True, dest="name", metavar="NAME")
    test.add_argument(
        "--params", default="{}", metavar="JSON", help="JSON, @FILE, or - for standard input"
    )
    test.add_argument("--key", metavar="ID", help="the key that it is signed with")
    test.add_argument("--at", metavar="TIME", help="2026-05-04T09:00+02:00; default: now")
    audit = commands.add_parser("audit", help="the audit log", description="The audit log.")
    parts = audit.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    verify = parts.add_parser("verify", help="find any edit, removal and reordering")
    verify.add_argument("--expect", metavar="SHA256", help="a line's hash that was kept elsewhere")
    show = parts.add_parser("show", help="what is in it")
    show.add_argument("--command-id", metavar="ID", help="of one command only")
    show.add_argument("-n", "--lines", type=int, metavar="N", help="the last N only")
    show.add_argument("--json", action="store_true", help="the lines as they are")
    for parser in (verify, show):
        parser.add_argument("directory", type=Path, nargs="?", metavar="DIR")
        _add_place(parser)


def run(given: argparse.Namespace) -> int:
    """Do one of these commands; the exit code. Raises SettingsError."""
    from arc_agent.host.control_socket import AgentNotThere, ControlDenied, ControlRefused

    try:
        return COMMANDS[given.command](given)
    except ControlRefused as error:
        return _fail(_NO, str(error))
    except AgentNotThere as error:
        return _fail(_NOT_THERE, f"no agent answers at {error}")
    except ControlDenied as error:
        return _fail(_NOT_ALLOWED, str(error))
    except (ValueError, OSError) as error:
        return _fail(_BAD, str(error))


# Speaking to the agent


def _status(given: argparse.Namespace) -> int:
    """status."""
    from arc_agent.cli import status

    facts = _ask(given)
    _print(status.as_json(facts) if given.json else status.as_text(facts))
    return _DONE if facts["is_healthy"] else _NO


def _doctor(given: argparse.Namespace) -> int:
    """doctor."""
    import asyncio

    import msgspec

    from arc_agent.cli.doctor import Finding, Place, examine, line
    from arc_agent.work.live_config import Source
    from arc_runtime.logs.redaction import mask_known

    file = given.config or (_USUAL_CONFIG if _is_there(_USUAL_CONFIG) else None)
    overrides = {} if given.data_dir is None else {"data_dir": str(given.data_dir)}
    source = Source(file=file, environ=_environ_of(given.unit), overrides=overrides)
    place = Place(source=source, control=_socket(given), unit=given.unit)

    async def look() -> list[Finding]:
        findings: list[Finding] = []
        async for each in examine(place):
            findings.append(each)
            if not given.json:
                _print(line(each))
        return findings

    findings = asyncio.run(look())
    if given.json:
        _print(mask_known(json.dumps(msgspec.to_builtins(findings), indent=2)))
    return _NO if any(each.state == "bad" for each in findings) else _DONE


def _environ_of(unit: str) -> dict[str, str]:
    """The environment as the unit has it: its credentials and its state, where we may look."""
    environ = dict(os.environ)
    name = unit.removesuffix(".service")
    for variable, place in {
        "CREDENTIALS_DIRECTORY": f"/run/credentials/{unit}",
        "STATE_DIRECTORY": f"/var/lib/{name.replace('@', '-')}",
    }.items():
        if variable not in environ and os.access(place, os.R_OK | os.X_OK):
            environ[variable] = place
    return environ


def _decide(given: argparse.Namespace) -> int:
    """approve and deny."""
    answer = _ask(given, id=given.id, note=given.note)
    done = "is let through" if given.command == "approve" else "is denied"
    _print(f"{answer['id']} ({answer['command']}) {done}")
    return _DONE


def _approvals(given: argparse.Namespace) -> int:
    """approvals."""
    for each in _ask(given)["approvals"]:
        signed = f", signed by {each['signed_by']}" if each["signed_by"] else ""
        _print(f"{each['id']}  {each['command']}  (rule {each['rule']!r}{signed})")
        _print(f"  waits since {each['since']}, until {each['until']}")
        params = each["params"][:_SHOWN_PARAMS_CHARS]
        cut = "…" if len(params) < each["params_bytes"] else ""
        _print(f"  params, {each['params_bytes']} bytes: {json.dumps(params)[1:-1]}{cut}")
    return _DONE


def _pause(given: argparse.Namespace) -> int:
    """pause."""
    from arc_runtime.durations import parse_duration

    seconds = None if given.duration is None else parse_duration(given.duration)
    answer = _ask(given, note=given.note, seconds=seconds)
    until = "until resume" if seconds is None else f"for {given.duration}"
    _print(f"it takes on nothing {until}")
    return _kept(answer)


def _resume(given: argparse.Namespace) -> int:
    """resume."""
    was_on = _ask(given)["was_on"]
    _print("it takes on commands again" if was_on else "it was neither paused nor stopped")
    return _DONE


def _stop_all(given: argparse.Namespace) -> int:
    """stop-all."""
    answer = _ask(given, note=given.note)
    _print(f"{answer['stopped']} commands are being ended; it takes on nothing until resume")
    return _kept(answer)


def _kept(answer: Mapping[str, Any]) -> int:
    """Whether an order survives a restart."""
    if answer["not_kept"] is None:
        return _DONE
    return _fail(_NO, f"done, but it will not survive a restart: {answer['not_kept']}")


def _ask(given: argparse.Namespace, **request: Any) -> dict[str, Any]:
    """One question and its answer."""
    from arc_agent.host.control_socket import ask

    return ask(_socket(given), {"do": given.command, **request})


def _add_place(parser: argparse.ArgumentParser) -> None:
    """Which agent of this host."""
    parser.add_argument("-c", "--config", type=Path, metavar="F", help="its configuration (YAML)")
    parser.add_argument("--socket", type=Path, metavar="S", help="its control socket")
    parser.add_argument("--data-dir", type=Path, metavar="D", help="its data directory")


def _socket(given: argparse.Namespace) -> Path:
    """Where the agent listens. Raises SettingsError.

    Under systemd the unit's runtime directory holds it, which this process cannot know for certain:
    the usual places are tried.
    """
    if given.socket is not None:
        return given.socket
    from arc_agent.config.places import control_socket

    if given.data_dir is not None:
        return given.data_dir / "control.sock"
    config = _config(given)
    places = [] if config is None else [control_socket(config, os.environ)]
    if given.config is None or (config is not None and config.control.socket is None):
        places += _USUAL_SOCKETS
    return next((place for place in places if _is_there(place)), places[0])


def _is_there(path: Path) -> bool:
    """Whether there is something at a path; also when only others may look."""
    try:
        return path.exists()
    except PermissionError:
        return True


def _config(given: argparse.Namespace) -> Any:
    """The agent's configuration, None when there is none to be found. Raises SettingsError."""
    from arc_agent.config.reading import read
    from arc_runtime.config.settings import SettingsError

    file = given.config or (_USUAL_CONFIG if _is_there(_USUAL_CONFIG) else None)
    try:
        return read(file, os.environ)
    except SettingsError:
        if given.config is not None:
            raise
        return None


# The policy


def _policy(given: argparse.Namespace) -> int:
    """policy test."""
    from arc_agent.config.params_schema import read_params
    from arc_agent.guard.policy import Action, Question
    from arc_agent.guard.policy_file import read_policy

    policy = read_policy(given.file)
    data = _params(given.params)
    verdict = policy.judge(
        Question(
            command=given.name,
            signed_by=given.key,
            at=_at(given.at),
            params=lambda: read_params(data),
        )
    )
    if verdict is None:  # only without params
        raise ValueError("the params are needed")
    for miss in verdict.missed:
        _print(f"not {miss.rule!r}: {miss.reason}")
    by = f"the rule {verdict.rule_name!r}" if verdict.rule is not None else "default"
    _print(f"{verdict.action}, by {by}: {verdict.reason}")
    limits = {"at once": verdict.rule and verdict.rule.at_once} if verdict.rule else {}
    if verdict.rule is not None:
        limits["an hour"] = verdict.rule.per_hour
    for text, limit in limits.items():
        if limit is not None and verdict.action is not Action.DENY:
            _print(f"at most {limit} {text}")
    return {Action.ALLOW: _DONE, Action.DENY: _NO, Action.APPROVE: _NOT_ALLOWED}[verdict.action]


def _params(given: str) -> bytes:
    """Params as they are given. Raises OSError."""
    if given == "-":
        return sys.stdin.buffer.read()
    return Path(given[1:]).read_bytes() if given.startswith("@") else given.encode()


def _at(given: str | None) -> Any:
    """An instant. Raises ValueError."""
    from datetime import UTC, datetime

    if given is None:
        return datetime.now(UTC)
    at = datetime.fromisoformat(given)
    if at.tzinfo is None:
        raise ValueError("--at: a time needs its offset, 2026-05-04T09:00+02:00 or …Z")
    return at


# The audit log


def _audit(given: argparse.Namespace) -> int:
    """audit verify and audit show."""
    return _verify(given) if given.subcommand == "verify" else _show(given)


def _verify(given: argparse.Namespace) -> int:
    """audit verify."""
    from arc_agent.guard.audit_reader import Broken, verify

    directory = _audit_directory(given)
    try:
        report = verify(directory, given.expect)
    except Broken as error:
        return _fail(_NO, f"{directory}: BROKEN: {error}")
    _print(f"{directory}: ok, {report.lines} lines in {report.files} files")
    _print(f"last line: {report.last_sha256}")
    if report.first_seq > 1:
        _print(f"its first line has the number {report.first_seq}: older ones were rotated away")
    if report.is_unfinished:
        _print("after the last line stands a part of another: being written, or cut by a crash")
    if given.expect is None:
        _print("lines cut off at its very end do not show: see --expect")
    return _DONE


def _show(given: argparse.Namespace) -> int:
    """audit show."""
    from collections import deque

    from arc_agent.guard.audit_reader import entries

    chosen = (
        entry
        for entry in entries(_audit_directory(given))
        if given.command_id in (None, entry.get("command_id"))
    )
    for entry in chosen if given.lines is None else deque(chosen, maxlen=max(0, given.lines)):
        if given.json:
            _print(json.dumps(entry, separators=(",", ":"), ensure_ascii=False))
            continue
        hidden = ("seq", "at", "event", "prev")
        facts = " ".join(f"{name}={value}" for name, value in entry.items() if name not in hidden)
        _print(f"{entry.get('at')} {entry.get('event'):<10} {facts}")
    return _DONE


def _audit_directory(given: argparse.Namespace) -> Path:
    """Where the log is. Raises ValueError, SettingsError."""
    if given.directory is not None:
        return given.directory
    if given.data_dir is not None:
        return given.data_dir / "audit"
    from arc_agent.config.places import audit_directory

    config = _config(given)
    if config is None:
        raise ValueError("which directory? There is no configuration that says")
    return audit_directory(config, os.environ)


COMMANDS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = {
    "status": _status,
    "doctor": _doctor,
    "approve": _decide,
    "deny": _decide,
    "approvals": _approvals,
    "pause": _pause,
    "resume": _resume,
    "stop-all": _stop_all,
    "policy": _policy,
    "audit": _audit,
}


def _fail(code: int, text: str) -> int:
    """Say what is wrong."""
    sys.stderr.write(f"arc-agent: {text}\n")
    return code


def _print(text: str) -> None:
    """A line of the answer."""
    sys.stdout.write(f"{text}\n")
