"""The text of `arc-agent approvals`: who asks, what would run, and until when it waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from arc_runtime.terminal.table import Column, print_table
from arc_runtime.terminal.text import on_one_line, printable
from arc_runtime.terminal.times import age

_SHOWN_CHARS: Final = 200
_COLUMNS: Final = (
    Column("ID"),
    Column("COMMAND"),
    Column("ASKED BY", rank=2),
    Column("RULE", rank=5),
    Column("SINCE", rank=4),
    Column("UNTIL", rank=1),
    Column("PARAMS", rank=3, is_text=True),
)


def print_waiting(waiting: Sequence[Mapping[str, Any]], *, is_wide: bool) -> None:
    """Write the commands that wait as a table."""
    rows = [
        (
            each["id"],
            each["command"],
            _sender(each),
            each["rule"],
            datetime.fromisoformat(each["since"]),
            datetime.fromisoformat(each["until"]),
            _params(each),
        )
        for each in waiting
    ]
    print_table(_COLUMNS, rows, is_wide=is_wide)


def as_text(each: Mapping[str, Any]) -> str:
    """Return one command on several lines, for a person who is to decide."""
    until = age(datetime.fromisoformat(each["until"]), datetime.now(UTC))
    params = printable(each["params"]) if each["params"] is not None else _params(each)
    cut = "…" if each["params"] is not None and _is_cut(each, each["params"]) else ""
    return "\n".join(
        (
            f"{each['id']}  {on_one_line(each['command'])}",
            f"  asked by  {_sender(each)}",
            f"  rule      {on_one_line(each['rule'])}, waits until {until}",
            f"  params    {params}{cut}",
            f"  sha256    {each['params_sha256']}, {each['params_bytes']} bytes",
        )
    )


def _sender(each: Mapping[str, Any]) -> str:
    """Return who asks, as far as this host knows."""
    if each["signed_by"] is None:
        return "unknown (not signed)"
    names = ", ".join(each["senders"])
    return f"{names} ({each['signed_by']})" if names else each["signed_by"]


def _params(each: Mapping[str, Any]) -> str:
    """Return the params in a cell, or their digest where the host does not show them."""
    params = each["params"]
    if params is None:
        return f"{each['params_bytes']} bytes, sha256 {each['params_sha256']}"
    shown = params[:_SHOWN_CHARS]
    return shown + ("…" if _is_cut(each, shown) else "")


def _is_cut(each: Mapping[str, Any], shown: str) -> bool:
    """Return True if there are more params than are shown."""
    return len(shown.encode()) < each["params_bytes"]
