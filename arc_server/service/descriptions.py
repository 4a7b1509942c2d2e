"""Descriptions are commands as answers have them."""

from __future__ import annotations

from arc_protocol.messages.bodies import CommandResponse
from arc_protocol.messages.commands import CommandStatus
from arc_protocol.messages.waiting import Waiting
from arc_server.ports.records import CommandRecord


def described(
    command: CommandRecord,
    response: CommandResponse | None = None,
    waiting: Waiting | None = None,
    *,
    error_code: str | None = None,
) -> CommandStatus:
    """Return the status of a command; `error_code` where there is no response to have it."""
    return CommandStatus(
        command_id=command.command_id,
        state=command.state,
        attempt=command.attempt,
        target=command.target,
        response=response,
        deployment_id=command.deployment_id,
        command=command.command,
        created_at=command.created_at,
        dispatched_at=command.dispatched_at,
        completed_at=command.completed_at,
        deadline=command.deadline,
        max_attempts=command.max_attempts,
        cancel_requested=command.cancel_requested or None,
        created_by=command.created_by,
        completed_by=command.completed_by,
        retry_of=command.retry_of,
        error_code=error_code,
        not_before=command.not_before,
        tags=None if command.tags is None else dict(command.tags),
        waiting=waiting,
    )
