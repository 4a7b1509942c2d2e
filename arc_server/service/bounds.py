"""Bounds that requests are held to: numbers in a range, and the deployment of a token."""

from __future__ import annotations

from arc_protocol.errors import Forbidden, InvalidCommand
from arc_protocol.messages.base import MAX_WAIT_SECONDS
from arc_server.ports.records import CommandRecord


def bounded(field: str, given: int | None, default: int, most: int) -> int:
    """Return a number from 1 to `most`, or its default. Raises InvalidCommand naming the field."""
    if given is None:
        return default
    if not 1 <= given <= most:
        raise InvalidCommand(f"{field}: must be from 1 to {most}", field=field)
    return given


def clamped(field: str, given: int | None, default: int, most: int) -> int:
    """Return a number from 1 to `most`, or its default. One above `most` becomes `most`.

    Raises InvalidCommand naming the field for a number below 1.
    """
    if given is None:
        return default
    if given < 1:
        raise InvalidCommand(f"{field}: must be at least 1", field=field)
    return min(given, most)


def check_wait(seconds: float) -> None:
    """Raise InvalidCommand for a wait out of bounds."""
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise InvalidCommand(
            f"waitSeconds: must be from 0 to {MAX_WAIT_SECONDS}", field="waitSeconds"
        )


def check_deployment(named: str, within: str | None) -> None:
    """Raise Forbidden when a caller that is bound to one deployment names another."""
    if within is not None and named != within:
        raise Forbidden("this token is bound to another deployment", deployment_id=named)


def is_within(command: CommandRecord, within: str | None) -> bool:
    """Return True if a caller that is bound to `within` may know of the command."""
    return within is None or command.deployment_id == within
