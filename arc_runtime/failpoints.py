"""Failpoints let a test make the process die, fail or wait at a named place.

They do nothing while the variable is unset.

`ARC_FAILPOINT="store.after_commit=kill"` in the environment of the process arms one; several are
separated by `;`. An action is `kill` (SIGKILL to itself), `exit(CODE)` (at once, without cleaning
up), `raise` (OSError EIO) or `sleep(SECONDS)` (blocks the thread). `kill@3` acts only the third
time that the point is passed.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final

VARIABLE: Final = "ARC_FAILPOINT"

NAMES: Final = frozenset(
    {
        "store.before_begin",
        "store.after_begin",
        "store.after_operation",
        "store.before_commit",
        "store.after_commit",
        "store.before_answer",
        "blob.before_rename",
        "blob.after_rename",
        "blob.before_unlink",
        "blob.after_unlink",
        "journal.before_rename",
        "agent.before_journal",
        "agent.after_journal",
        "agent.after_announce",
        "agent.before_handler",
        "agent.after_handler",
        "agent.after_spool",
        "agent.after_submit",
        "agent.before_next_key",
        "agent.after_next_key",
        "agent.before_new_key_request",
        "agent.after_new_key_request",
        "agent.before_new_key",
        "agent.after_new_key",
        "agent.after_old_key",
        "agent.before_access_token",
        "agent.after_access_token",
        "agent.after_enrol_key",
        "agent.after_enrol_request",
        "agent.before_identity",
        "agent.after_identity",
    }
)
"""The names of all failpoints. A test compares them with the calls of `hit`; none is removed."""

_ACTION: Final = re.compile(
    r"(?P<verb>kill|exit|raise|sleep)(?:\((?P<argument>[0-9]+(?:\.[0-9]+)?)\))?(?:@(?P<ordinal>[0-9]+))?"
)


def parse(text: str) -> Mapping[str, Callable[[], None]]:
    """Return the armed points of `name=action;name=action`. Raises ValueError."""
    armed: dict[str, Callable[[], None]] = {}
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        name, _, action = entry.partition("=")
        if name not in NAMES:
            raise ValueError(f"unknown failpoint {name!r}; there are {', '.join(sorted(NAMES))}")
        if name in armed:
            raise ValueError(f"failpoint {name} is given twice")
        armed[name] = _action(name, action)
    return armed


def _action(name: str, text: str) -> Callable[[], None]:
    """Return what to do when `name` is passed. Raises ValueError."""
    found = _ACTION.fullmatch(text)
    if found is None or (found["argument"] is None) != (found["verb"] in ("kill", "raise")):
        raise ValueError(
            f"failpoint {name}: {text!r} is not kill, exit(CODE), raise or sleep(SECONDS),"
            " each with @N or without"
        )
    act = _verb(name, found["verb"], float(found["argument"] or 0))
    if found["ordinal"] is None:
        return act
    ordinal = int(found["ordinal"])
    passed = itertools.count(1)  # next() is atomic: any thread may pass a failpoint

    def act_once() -> None:
        if next(passed) == ordinal:
            act()

    return act_once


def _verb(name: str, verb: str, argument: float) -> Callable[[], None]:
    """Return the action of a verb, with its argument filled in."""

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def leave() -> None:
        os._exit(int(argument))

    def fail() -> None:
        raise OSError(errno.EIO, f"failpoint {name}")

    def wait() -> None:
        time.sleep(argument)

    return {"kill": kill, "exit": leave, "raise": fail, "sleep": wait}[verb]


def _unarmed(name: str, /) -> None:
    """Do nothing: no failpoint is armed."""


def _armed_by(text: str) -> Callable[[str], None]:
    """Return the `hit` of the armed points. Ends the process with code 2 when `text` is wrong."""
    try:
        armed = parse(text)
    except ValueError as error:
        sys.stderr.write(f"{VARIABLE}: {error}\n")
        sys.exit(2)

    def act(name: str, /) -> None:
        action = armed.get(name)
        if action is not None:
            action()

    return act


hit: Final[Callable[[str], None]] = (
    _armed_by(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else _unarmed
)
"""Pass the failpoint of this name."""
