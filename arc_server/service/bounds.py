"""Bounds that requests are held to: numbers in a range, and the reach of the caller."""

from __future__ import annotations

from arc_protocol.errors import Forbidden, InvalidCommand
from arc_protocol.messages.base import MAX_WAIT_SECONDS, CommandTarget
from arc_server.ports.reach import Reach


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


def check_deployment(named: str, within: Reach) -> None:
    """Raise Forbidden when a caller names a deployment that it is not bound to."""
    if not within.allows_deployment(named):
        raise Forbidden("this token is bound to another deployment", deployment_id=named)


def check_command(named: str, within: Reach) -> None:
    """Raise Forbidden when a caller names a command that it is not bound to."""
    if not within.allows_command(named):
        raise Forbidden("this token is for other commands", command=named)


def check_agent(target: CommandTarget | None, agent_id: str | None, within: Reach) -> None:
    """Raise Forbidden when an agent gives another target or agent id than it is bound to."""
    if within.target is not None and target != within.target:
        raise Forbidden("this token is bound to another target")
    if within.is_default_only and target is not None:
        raise Forbidden("this agent enrolled without a target: enrol it again for this one")
    if not within.allows_agent(agent_id):
        raise Forbidden(f"this token or credential is bound to the agent {within.agent_id}")
