"""The login behind a process: the name of the person at the terminal, also under sudo.

A user id says whose rights a process has, and under sudo they are root's. The kernel keeps the id
of the login (the loginuid of the audit session), and sudo leaves the name in its environment.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Final, Literal

import msgspec

_UNSET: Final = 2**32 - 1
"""A process that no login began, or one whose login another user namespace hides."""
_MAX_CHARS: Final = 64

Source = Literal["loginuid", "sudo", "client", "uid"]


class Login(msgspec.Struct, frozen=True):
    """The person behind a request."""

    name: str
    source: Source
    """`loginuid`: the kernel's word. `sudo`: the process's environment. `client`: the program's own
    word, which counts as much as its user id does. `uid`: no login is known, only the user."""


def login_of(pid: int, uid: int, claim: str | None = None) -> Login:
    """Return the login of a process. May block for the host's user database.

    `claim` is the login that the process gives, for where the kernel shows nothing of it: a unit
    with `PrivateUsers=` and `ProtectProc=` sees neither the ids nor the processes of others.
    """
    process = Path("/proc", str(pid))
    login = _login_uid(process)
    if login is not None:
        return Login(_name_of(login), "loginuid")
    name = _sudo_user(process)
    if name is not None:
        return Login(name, "sudo")
    if claim is not None and _is_name(claim):
        return Login(claim, "client")
    return Login(_name_of(uid), "uid")


def own_login() -> str:
    """Return the name of the person who runs this process."""
    return login_of(os.getpid(), os.getuid()).name


def _login_uid(process: Path) -> int | None:
    """Return the id of the user who logged in; None if the kernel shows none."""
    try:
        uid = int((process / "loginuid").read_text())
    except (OSError, ValueError):
        return None
    return uid if uid != _UNSET else None


def _sudo_user(process: Path) -> str | None:
    """Return the user who called sudo; None without one, or if that cannot be read."""
    try:
        variables = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return None
    names = [each[10:].decode("utf-8", "replace") for each in variables if each[:10] == _SUDO]
    return names[0] if names and _is_name(names[0]) else None


_SUDO: Final = b"SUDO_USER="


def _name_of(uid: int) -> str:
    """Return the name of a user, or the number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def _is_name(text: str) -> bool:
    """Return True if a text may be a login name."""
    return 0 < len(text) <= _MAX_CHARS and text.isprintable() and " " not in text
