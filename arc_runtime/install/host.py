"""The host is where a program is installed: its root, its commands, and files that appear whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from arc_runtime.directories import sync_directory

Print: TypeAlias = Callable[[str], None]
"""Prints a line for the operator."""


class InstallError(Exception):
    """An installation cannot go on. The message is for a terminal, and says what to do."""


class Host:
    """A host is the running system or, for tests and packages, a scratch directory."""

    def __init__(self, root: Path, run: Callable[[Sequence[str]], None], print_line: Print) -> None:
        self.root = root
        self.run = run
        """Run a command to its end. Raises InstallError."""
        self.print = print_line

    def has(self, name: str, accounts: Literal["passwd", "group"] = "passwd") -> bool:
        """Return True if the host has a user, or a group."""
        try:
            lines = below(self.root, f"/etc/{accounts}").read_text().splitlines()
        except FileNotFoundError:
            return False
        return any(line.startswith(f"{name}:") for line in lines)

    @property
    def is_scratch(self) -> bool:
        """Return True if this is a scratch directory and not the running system."""
        return self.root != Path("/")


def below(root: Path, path: str) -> Path:
    """Return the place of a host's path below a root."""
    return root / path.lstrip("/")


def digest(content: bytes) -> str:
    """Return the digest of a file's content, which shows whether it was edited."""
    return hashlib.sha256(content).hexdigest()


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Replace a whole file: a reader sees the old or the new one. Durable on return."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as opened:
        opened.write(content)
        os.fchmod(opened.fileno(), mode)
        opened.flush()
        os.fsync(opened.fileno())
    beside.replace(path)
    sync_directory(path.parent)


def write_link(path: Path, target: str) -> None:
    """Make a link, or turn it to another target in one step."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(path)
    sync_directory(path.parent)
