"""`arc-agent audit verify` and `audit show`."""

from __future__ import annotations

import argparse
import json
from collections import deque

from arc_agent.cli.output import DONE, NO, UNUSABLE, fail, show
from arc_agent.cli.place import audit_of
from arc_agent.guard.audit_reader import Broken, entries, verify


def run(given: argparse.Namespace) -> int:
    """Carry out one of these commands; return the exit code. Raises SettingsError."""
    try:
        return _verify(given) if given.subcommand == "verify" else _show(given)
    except (ValueError, OSError) as error:
        return fail(UNUSABLE, str(error))


def _verify(given: argparse.Namespace) -> int:
    """Verify the chain of the log. Raises ValueError, OSError."""
    directory = audit_of(given)
    try:
        report = verify(directory, given.expect)
    except Broken as error:
        return fail(NO, f"{directory}: BROKEN: {error}")
    show(f"{directory}: ok, {report.lines} lines in {report.files} files")
    show(f"last line: {report.last_sha256}")
    if report.first_seq > 1:
        show(f"the first line has the number {report.first_seq}: older lines were rotated away")
    if report.is_unfinished:
        show("a part of a line follows the last one: it is being written, or a crash cut it")
    if given.expect is None:
        show("lines cut off at the very end cannot be found without --expect")
    return DONE


def _show(given: argparse.Namespace) -> int:
    """Show lines of the log. Raises ValueError, OSError."""
    chosen = (
        entry
        for entry in entries(audit_of(given))
        if given.command_id in (None, entry.get("command_id"))
    )
    for entry in chosen if given.lines is None else deque(chosen, maxlen=max(0, given.lines)):
        if given.json:
            show(json.dumps(entry, separators=(",", ":"), ensure_ascii=False))
            continue
        hidden = ("seq", "at", "event", "prev")
        facts = " ".join(f"{name}={value}" for name, value in entry.items() if name not in hidden)
        show(f"{entry.get('at')} {entry.get('event'):<10} {facts}")
    return DONE
