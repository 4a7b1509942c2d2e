"""The text of `arc-agent status`: the state of a running agent on one screen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

_MAX_HANDLERS_CHARS: Final = 60
_STEPS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_SIZES: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def as_json(status: Mapping[str, Any]) -> str:
    """Return the status as JSON."""
    return json.dumps(status, indent=2, ensure_ascii=False)


def as_text(status: Mapping[str, Any]) -> str:
    """Return the status as text."""
    return "\n".join(_printable(line) for line in _lines(status))


def _lines(status: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the text."""
    yield f"arc-agent {status['version']}, {status['name']}: {_verdict(status)}"
    for each in status["degraded"]:
        yield f"  ! {each['part']}: {each['reason']}"
    for name, value in (
        ("server", f"{status['server']}, {_contact(status['contact'])}"),
        ("deployment", _deployment(status)),
        ("up", f"{span(status['up_seconds'])}, {status['done']} done, pid {status['pid']}"),
        ("credential", _credential(status["credential"])),
        ("policy", _policy(status["policy"])),
        ("handlers", _handlers(status["handlers"])),
        ("spool", _spool(status["spool"])),
    ):
        yield f"  {name:<11} {value}"
    running = status["running"]
    yield f"commands: {len(running)}, of {status['max_concurrent']} at once"
    if running:
        rows = [("ID", "COMMAND", "ATTEMPT", "STATE", "FOR", "LEASE", "PROGRESS")]
        yield from _table([*rows, *map(_command, running)])
    if status["approvals"]:
        yield f"waiting for approval: {len(status['approvals'])}"
        rows = [("ID", "COMMAND", "RULE", "UNTIL")]
        asked = [(a["id"], a["command"], a["rule"], a["until"]) for a in status["approvals"]]
        yield from _table([*rows, *asked])


def _verdict(status: Mapping[str, Any]) -> str:
    """Return the state in a few words."""
    order = status["order"]
    parts = ["healthy" if status["is_healthy"] else "degraded"]
    if order is not None:
        until = f" until {order['until']}" if order["until"] else " until resume"
        note = f" ({order['note']})" if order["note"] else ""
        parts.append(f"{order['state']}{until}{note}")
    return ", ".join(parts)


def _contact(contact: Mapping[str, Any]) -> str:
    """Return the state of the contact."""
    if contact["is_lost"]:
        return f"no contact for {span(contact['lost_for_seconds'])}"
    if contact["answered_seconds_ago"] is None:
        return "no contact yet"
    return f"last contact {span(contact['answered_seconds_ago'])} ago"


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
            old = "unreadable" if age is None else f"{span(age)} old"
            return f"{credential['file']}, {old}"
        case _:
            return _enrolled(credential)


def _enrolled(credential: Mapping[str, Any]) -> str:
    """Return the identity and its access token."""
    text = f"{credential['credential_id']} ({credential['state']})"
    age, ends_in = credential["token_age_seconds"], credential["token_ends_in_seconds"]
    if age is not None and ends_in is not None:
        text += f", access token {span(age)} old, good for {span(ends_in)}"
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
    since = "" if oldest is None else f", the oldest for {span(oldest)}"
    return f"{spool['count']} results, {size(spool['bytes'])} of {size(spool['max_bytes'])}{since}"


def _command(each: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a row of the table."""
    lease_seconds = each["lease_seconds_left"]
    return (
        each["id"],
        each["command"],
        str(each["attempt"]),
        each["state"],
        span(each["for_seconds"]),
        span(lease_seconds) if lease_seconds > 0 else "over",
        _progress(each["progress"]),
    )


def _progress(progress: Mapping[str, Any] | None) -> str:
    """Return the reported progress."""
    if progress is None:
        return ""
    done, total, text = progress["done"], progress["total"], progress["text"]
    shown = f"{done:g}" if total is None else f"{done:g} of {total:g}"
    return f"{shown} {text}" if text else shown


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield rows with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield f"  {'  '.join(cells)}".rstrip()


def span(seconds: float) -> str:
    """Return a length of time in its two largest units: `3 d 4 h`, `12 min`, `2 s`."""
    whole = round(seconds)
    for (unit, name), (below, small) in pairwise(_STEPS):
        if whole >= unit:
            rest = whole % unit // below
            return f"{whole // unit} {name}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def size(count: int) -> str:
    """Return bytes in the largest unit: `12.4 GiB`."""
    for unit, name in _SIZES:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def _printable(text: str) -> str:
    """Return text without characters that control a terminal."""
    return "".join(char if char.isprintable() else "�" for char in text)
