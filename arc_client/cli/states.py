"""The states of commands as a person sees them: on the wire a cancelled command is FAILED."""

from __future__ import annotations

from arc_protocol.lifecycle import CANCELLED, TERMINAL
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import ErrorResponse
from arc_protocol.messages.commands import CommandStatus


def error_code_of(status: CommandStatus) -> str | None:
    """Return the code that a command failed with, as far as is known."""
    if isinstance(status.response, ErrorResponse):
        return status.response.code
    return status.error_code


def is_cancelled(status: CommandStatus) -> bool:
    """Return True if a command ended because it was cancelled."""
    return status.state is State.FAILED and error_code_of(status) == CANCELLED


def shown_state(status: CommandStatus) -> str:
    """Return the state for a person: `CANCELLED`, and `CANCELLING` until the agent has stopped."""
    if is_cancelled(status):
        return CANCELLED
    if status.cancel_requested and status.state not in TERMINAL:
        return "CANCELLING"
    return str(status.state)
