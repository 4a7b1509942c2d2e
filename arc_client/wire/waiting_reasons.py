"""The reasons for which a command waits, in words."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from arc_protocol.messages.base import IMPLICIT_TARGET
from arc_protocol.messages.commands import CommandStatus
from arc_protocol.messages.waiting import Waiting, WaitingReason
from arc_runtime.terminal.times import local, short_span

_SOON: Final = timedelta(hours=12)
"""A time that is nearer than this is shown without its date."""


def reason_of(status: CommandStatus) -> str | None:
    """Return why a command waits, as a clause for a person; None if nothing is known."""
    waiting = status.waiting
    if waiting is None:
        return None
    agent = "the agent" if waiting.hostname is None else f"the agent on {waiting.hostname}"
    match waiting.reason:
        case WaitingReason.NEVER_SEEN:
            return f"no agent of {_addressee(status)} has ever been seen"
        case WaitingReason.SILENT if waiting.hostname is None:
            return f"no receiver of {_addressee(status)} has polled for {_age(waiting)}"
        case WaitingReason.SILENT:
            return f"no sign of life from {agent} for {_age(waiting)}"
        case WaitingReason.GONE:
            return f"{agent} ended {_age(waiting)} ago"
        case WaitingReason.APPROVAL:
            host = "its host" if waiting.hostname is None else waiting.hostname
            return f"a person on {host} has to approve it{_until(waiting)}"
        case reason:
            note = f" ({waiting.note})" if waiting.note else ""
            return f"{agent} is {reason}{_until(waiting)}{note}"


def _addressee(status: CommandStatus) -> str:
    """Return the deployment of a command, and its target unless that is the implicit one."""
    deployment = status.deployment_id or "the deployment"
    if status.target is None or status.target == IMPLICIT_TARGET:
        return deployment
    return f"{deployment} for the target {status.target.resource_id}"


def _age(waiting: Waiting) -> str:
    """Return how long it has been so, by the server's clock."""
    seconds = 0.0 if waiting.since is None else (waiting.now - waiting.since).total_seconds()
    return short_span(max(0.0, seconds))


def _until(waiting: Waiting) -> str:
    """Return ` until …`, in this machine's time zone; empty if it does not end by itself."""
    if waiting.until is None:
        return ""
    shown = "%H:%M:%S" if abs(waiting.until - waiting.now) < _SOON else "%Y-%m-%d %H:%M"
    return f" until {local(waiting.until).strftime(shown)}"
