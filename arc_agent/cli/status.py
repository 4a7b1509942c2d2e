"""`arc-agent status`, for people: what the running agent says of itself, in a screenful."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

_MAX_HANDLERS_CHARS: Final = 60
_STEPS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_SIZES: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def as_json(status: Mapping[str, Any]) -> str:
    """For programs."""
    return json.dumps(status, indent=2, ensure_ascii=False)


def as_text(status: Mapping[str, Any]) -> str:
    """For people."""
    return "\n".join(_printable(line) for line in _lines(status))


def _lines(status: Mapping[str, Any]) -> Iterator[str]:
    """Line by line."""
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
    """How it is, in a word or two."""
    order = status["order"]
    parts = ["healthy" if status["is_healthy"] else "degraded"]
    if order is not None:
        until = f" until {order['until']}" if order["until"] else " until resume"
        note = f" ({order['note']})" if order["note"] else ""
        parts.append(f"{order['state']}{until}{note}")
    return ", ".join(parts)


def _contact(contact: Mapping[str, Any]) -> str:
    """Whether the server answers."""
    if contact["is_lost"]:
        return f"no contact for {span(contact['lost_for_seconds'])}"
    if contact["answered_seconds_ago"] is None:
        return "no contact yet"
    return f"last contact {span(contact['answered_seconds_ago'])} ago"


def _deployment(status: Mapping[str, Any]) -> str:
    """Whose commands it runs."""
    target = status["target"]
    return status["deployment"] + (f", {target['type']} {target['id']}" if target else "")


def _credential(credential: Mapping[str, Any]) -> str:
    """What it shows the server, and how old that is."""
    match credential["kind"]:
        case "none":
            return "none: the server has to take anybody"
        case "literal":
            return "a token in the configuration or environment"
        case "file":
            age = credential["age_seconds"]
            old = "cannot be looked at" if age is None else f"{span(age)} old"
            return f"{credential['file']}, {old}"
        case _:
            return _enrolled(credential)


def _enrolled(credential: Mapping[str, Any]) -> str:
    """An identity of its own, and its access token."""
    text = f"{credential['credential_id']} ({credential['state']})"
    age, left = credential["token_age_seconds"], credential["token_ends_in_seconds"]
    if age is not None and left is not None:
        text += f", access token {span(age)} old, good for {span(left)}"
    return text


def _policy(policy: Mapping[str, Any] | None) -> str:
    """Which rules are in force."""
    if policy is None:
        return "none: everything that has a handler may run"
    return f"{policy['file']}, {policy['rules']} rules, sha256 {policy['sha256'][:12]}"


def _handlers(names: Sequence[str]) -> str:
    """How many, and the first of them."""
    text = ", ".join(names)
    if len(text) > _MAX_HANDLERS_CHARS:
        text = f"{text[:_MAX_HANDLERS_CHARS].rpartition(',')[0]}, …"
    return f"{len(names)}: {text}"


def _spool(spool: Mapping[str, Any]) -> str:
    """What the server has not taken yet."""
    if not spool["count"]:
        return "empty"
    oldest = spool["oldest_seconds"]
    since = "" if oldest is None else f", the oldest for {span(oldest)}"
    return f"{spool['count']} results, {size(spool['bytes'])} of {size(spool['max_bytes'])}{since}"


def _command(each: Mapping[str, Any]) -> tuple[str, ...]:
    """A row."""
    left = each["lease_seconds_left"]
    return (
        each["id"],
        each["command"],
        str(each["attempt"]),
        each["state"],
        span(each["for_seconds"]),
        span(left) if left > 0 else "over",
        _progress(each["progress"]),
    )


def _progress(progress: Mapping[str, Any] | None) -> str:
    """How far it says that it is."""
    if progress is None:
        return ""
    done, total, text = progress["done"], progress["total"], progress["text"]
    shown = f"{done:g}" if total is None else f"{done:g} of {total:g}"
    return f"{shown} {text}" if text else shown


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Rows with their columns under each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield f"  {'  '.join(cells)}".rstrip()


def span(seconds: float) -> str:
    """A length of time in its two largest units: `3 d 4 h`, `12 min`, `2 s`."""
    left = round(seconds)
    for (unit, name), (below, small) in pairwise(_STEPS):
        if left >= unit:
            rest = left % unit // below
            return f"{left // unit} {name}" + (f" {rest} {small}" if rest else "")
    return f"{left} s"


def size(count: int) -> str:
    """Bytes as people read them."""
    for unit, name in _SIZES:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def _printable(text: str) -> str:
    """Text that cannot act on a terminal."""
    return "".join(char if char.isprintable() else "�" for char in text)
