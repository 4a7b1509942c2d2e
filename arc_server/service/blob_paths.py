"""Paths of blobs: each body of a command has its place."""

from __future__ import annotations

import secrets
from typing import Final

from arc_server.ports.records import CommandRecord

ROOT: Final = "arc/commands"


def params_path(command_id: str) -> str:
    """Return where the params of a command are uploaded."""
    return f"{command_directory(command_id)}/params"


def response_path(command: CommandRecord, lease_id: str | None = None) -> str:
    """Return where a response of the latest lease, or of `lease_id`, is uploaded.

    Attempt and lease are in it: a stale holder cannot overwrite a newer body.
    """
    attempt = command.lease_attempt or command.attempt
    lease = lease_id or command.lease_id or "none"
    return f"{command_directory(command.command_id)}/attempts/{attempt}/{lease}/response"


def is_result(path: str) -> bool:
    """Return True for the path of a response."""
    return "/attempts/" in path


def attempts_directory(path: str) -> str:
    """Return the directory of all results of the command that the path of a result belongs to."""
    return path.partition("/attempts/")[0] + "/attempts"


def planted_path(command_id: str) -> str:
    """Return a fresh place for params that an operator puts in."""
    return f"{command_directory(command_id)}/planted/{secrets.token_hex(8)}"


def command_directory(command_id: str) -> str:
    """Return the directory of all blobs of a command."""
    return f"{ROOT}/{command_id}"
