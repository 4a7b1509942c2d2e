"""The text of `arc-agent status`: the state of a running agent on one screen."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from arc_agent.cli.output import show_sentence
from arc_runtime.terminal.table import Cell, Column, print_table
from arc_runtime.terminal.text import on_one_line
from arc_runtime.terminal.times import short_span

_MAX_HANDLERS_CHARS: Final = 60
_SIZES: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_RUNNING: Final = (
    Column("ID"),
    Column("COMMAND"),
    Column("STATE", is_state=True),
    Column("ATTEMPT", rank=4),
    Column("FOR", rank=1),
    Column("LEASE", rank=3),
    Column("PROGRESS", rank=2, is_text=True),
)
_WAITING: Final = (
    Column("ID"),
    Column("COMMAND"),
    Column("RULE", rank=2),
    Column("UNTIL", rank=1),
)


def as_json(status: Mapping[str, Any]) -> str:
    """Return the status as JSON."""
    return json.dumps(status, indent=2, ensure_ascii=False)


def print_text(status: Mapping[str, Any], *, is_wide: bool = False) -> None:
    """Write the status as text, its tables as wide as the terminal."""
    for line in _lines(status):
        show_sentence(on_one_line(line))
    running, waiting = status["running"], status["approvals"]
    sys.stdout.write(f"commands: {len(running)}, of {status['max_concurrent']} at once\n")
    sys.stdout.flush()  # tables go past the text layer
    if running:
        print_table(_RUNNING, [_command(each) for each in running], is_wide=is_wide)
    if waiting:
        sys.stdout.write(f"waiting for approval: {len(waiting)}\n")
        sys.stdout.flush()
        print_table(_WAITING, [_request(each) for each in waiting], is_wide=is_wide)


def _lines(status: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines before the tables."""
    yield f"arc-agent {status['version']}, {status['name']}: {_verdict(status)}"
    for each in status["degraded"]:
        yield f"  ! {each['part']}: {each['reason']}"
    for name, value in (
        ("server", f"{status['server']}, {_contact(status['contact'])}"),
        ("deployment", _deployment(status)),
        ("up", f"{short_span(status['up_seconds'])}, {status['done']} done, pid {status['pid']}"),
        ("credential", _credential(status["credential"])),
        ("policy", _policy(status["policy"])),
        ("handlers", _handlers(status["handlers"])),
        ("spool", _spool(status["spool"])),
    ):
        yield f"  {name:<11} {value}"


def _verdict(status: Mapping[str, Any]) -> str:
    """Return the state in a few words."""
    order = status["order"]
    parts = ["healthy" if status["is_healthy"] else "degraded"]
    if order is not None:
        note = f" ({order['note']})" if order["note"] else ""
        parts.append(f"{order['state']} {_how_long(order['until'])}{note}")
    return ", ".join(parts)


def _how_long(until: str | None) -> str:
    """Return how much longer an order is in force."""
    if until is None:
        return "until resume"
    left = datetime.fromisoformat(until) - datetime.now(UTC)
    return f"for another {short_span(max(0.0, left.total_seconds()))}"


def _contact(contact: Mapping[str, Any]) -> str:
    """Return the state of the contact."""
    if contact["is_lost"]:
        return f"no contact for {short_span(contact['lost_for_seconds'])}"
    if contact["answered_seconds_ago"] is None:
        return "no contact yet"
    return f"last contact {short_span(contact['answered_seconds_ago'])} ago"


def _deployment(status: Mapping[str, Any]) -> str:
    """Return the deployment and the target."""
    target = status["target"]
    return status["deployment"] + (f", {target['type']} {target['id']}" if target else "")


def _credential(credential: Mapping[str, Any]) -> str:
    """Return the kind of the credential, and its age."""
    match credential["kind"]:
        case "none":
            return "none: the server must accept every caller"
        case "literal":
            return "a token in the configuration or environment"
        case "file":
            age = credential["age_seconds"]
            old = "unreadable" if age is None else f"{short_span(age)} old"
            return f"{credential['file']}, {old}"
        case _:
            return _enrolled(credential)


def _enrolled(credential: Mapping[str, Any]) -> str:
    """Return the identity and its access token."""
    text = f"{credential['credential_id']} ({credential['state']})"
    age, ends_in = credential["token_age_seconds"], credential["token_ends_in_seconds"]
    if age is not None and ends_in is not None:
        text += f", access token {short_span(age)} old, good for {short_span(ends_in)}"
    return text


def _policy(policy: Mapping[str, Any] | None) -> str:
    """Return the policy's file and number of rules."""
    if policy is None:
        return "none: every command that has a handler may run"
    return f"{policy['file']}, {policy['rules']} rules, sha256 {policy['sha256'][:12]}"


def _handlers(names: Sequence[str]) -> str:
    """Return the number of handlers, and their first names."""
    text = ", ".join(names)
    if len(text) > _MAX_HANDLERS_CHARS:
        text = f"{text[:_MAX_HANDLERS_CHARS].rpartition(',')[0]}, …"
    return f"{len(names)}: {text}"


def _spool(spool: Mapping[str, Any]) -> str:
    """Return the undelivered responses."""
    if not spool["count"]:
        return "empty"
    oldest = spool["oldest_seconds"]
    since = "" if oldest is None else f", the oldest for {short_span(oldest)}"
    return f"{spool['count']} results, {size(spool['bytes'])} of {size(spool['max_bytes'])}{since}"


def _command(each: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a row of the table of running commands."""
    lease_seconds = each["lease_seconds_left"]
    return (
        each["id"],
        each["command"],
        each["state"],
        str(each["attempt"]),
        short_span(each["for_seconds"]),
        short_span(lease_seconds) if lease_seconds > 0 else "over",
        _progress(each["progress"]),
    )


def _request(each: Mapping[str, Any]) -> tuple[Cell, ...]:
    """Return a row of the table of commands that wait for approval."""
    return each["id"], each["command"], each["rule"], datetime.fromisoformat(each["until"])


def _progress(progress: Mapping[str, Any] | None) -> str:
    """Return the reported progress."""
    if progress is None:
        return ""
    done, total, text = progress["done"], progress["total"], progress["text"]
    shown = f"{done:g}" if total is None else f"{done:g} of {total:g}"
    return f"{shown} {text}" if text else shown


def size(count: int) -> str:
    """Return bytes in the largest unit: `12.4 GiB`."""
    for unit, name in _SIZES:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"
