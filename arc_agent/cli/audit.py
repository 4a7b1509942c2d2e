"""`arc-agent audit verify` and `audit show`."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from arc_agent.cli.output import DONE, NO, UNUSABLE, fail, show, show_json
from arc_agent.cli.place import audit_of
from arc_agent.guard.audit_reader import Broken, entries, verify
from arc_runtime.terminal.text import counted, on_one_line

_Entry = dict[str, Any]

_NEEDS_QUOTES: Final = re.compile(r'[\s"=]|^$')
_HIDDEN: Final = ("seq", "at", "event", "prev")
_LOOK_SECONDS: Final = 0.25
"""The time between two looks for new lines."""


def run(given: argparse.Namespace) -> int:
    """Carry out one of these commands; return the exit code. Raises SettingsError."""
    try:
        return _verify(given) if given.subcommand == "verify" else _show(given)
    except (ValueError, OSError) as error:
        return fail(UNUSABLE, error)


def _verify(given: argparse.Namespace) -> int:
    """Verify the chain of the log. Raises ValueError, OSError."""
    directory = audit_of(given)
    try:
        report = verify(directory, given.expect)
    except Broken as error:
        return fail(NO, f"{directory}: BROKEN: {error}")
    show(f"{directory}: ok, {counted(report.lines, 'line')} in {counted(report.files, 'file')}")
    show(f"last line: {report.last_sha256}")
    if report.first_seq > 1:
        show(f"the first line has the number {report.first_seq}: older lines were rotated away")
    if report.is_unfinished:
        show("a part of a line follows the last one: it is being written, or a crash cut it")
    if given.expect is None:
        show("lines cut off at the very end cannot be found without --expect")
    return DONE


def _show(given: argparse.Namespace) -> int:
    """Show lines of the log, with --follow until it is stopped. Raises ValueError, OSError."""
    write = _write_json if given.json else _TextWriter().write
    last = None if given.lines is None else deque[_Entry](maxlen=max(0, given.lines))

    def flush() -> None:
        nonlocal last
        for entry in last or ():
            write(entry)
        last = None
        sys.stdout.flush()

    def wait() -> None:
        flush()
        time.sleep(_LOOK_SECONDS)

    with suppress(KeyboardInterrupt):
        for entry in entries(audit_of(given), wait if given.follow else None):
            if _is_chosen(given, entry):
                write(entry) if last is None else last.append(entry)
        flush()
    return DONE


def _is_chosen(given: argparse.Namespace, entry: _Entry) -> bool:
    """Return True if the options ask for a line."""
    if not str(entry.get("command_id", "")).startswith(given.command_id or ""):
        return False
    if given.event and entry.get("event") not in given.event:
        return False
    return given.since is None or _age_seconds(entry) <= given.since


def _age_seconds(entry: _Entry) -> float:
    """Return the age of a line, without end if it has no time."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(entry["at"])).total_seconds()
    except (KeyError, TypeError, ValueError):
        return math.inf


def _write_json(entry: _Entry) -> None:
    show_json(json.dumps(entry, separators=(",", ":"), ensure_ascii=False))


def _shown(value: Any) -> str:
    """Return a value of a line; a text that could be read as several facts is quoted."""
    text = on_one_line(str(value))
    return json.dumps(text, ensure_ascii=False) if _NEEDS_QUOTES.search(text) else text


class _TextWriter:
    """Writes lines as text. The end of a command gets its name from the line of its start."""

    def __init__(self) -> None:
        self._names: dict[Any, Any] = {}

    def write(self, entry: _Entry) -> None:
        """Write a line."""
        command_id = entry.get("command_id")
        if entry.get("event") == "ended":
            entry = {"command": self._names.pop(command_id, None), **entry}
        elif "command" in entry:
            self._names[command_id] = entry["command"]
        facts = " ".join(
            f"{name}={_shown(value)}"
            for name, value in entry.items()
            if name not in _HIDDEN and value is not None
        )
        show(f"{entry.get('at')} {entry.get('event'):<10} {facts}".rstrip())
