"""The messages about commands that wait: the reason, as holders report it and senders read it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from arc_protocol.messages.base import Message, Name, Timestamp

NOTHING_KNOWN: Final = "none"
"""The tag of a caller that knows no reason, in the query `waiting`."""


class WaitingReason(StrEnum):
    """Why a command waits. The `state` of an agent's status is a reason too."""

    NEVER_SEEN = "never_seen"
    """No agent that would take it was ever seen."""
    SILENT = "silent"
    """The agent gives no sign of life."""
    GONE = "gone"
    """The agent ended, and said so."""
    PAUSED = "paused"
    """A person on the host paused the agent."""
    STOPPED = "stopped"
    """A person on the host stopped the agent."""
    DEGRADED = "degraded"
    """The agent has trouble of its own."""
    APPROVAL = "approval"
    """A person on the host has to approve it."""


class Waiting(Message, frozen=True, kw_only=True):
    """Why a command does not run yet. Every instant but `until` is by the server's clock."""

    reason: str
    """A WaitingReason, or one that the reader does not know."""
    tag: str
    """Changes with anything here but `now`."""
    now: Timestamp
    hostname: str | None = None
    """The host of the agent that the reason is about."""
    note: str | None = None
    """The words of the person or the agent on the host."""
    since: Timestamp | None = None
    until: Timestamp | None = None
    """When it ends by itself, by the host's clock."""
    is_absent: bool | None = None
    """True: it is certain that no agent or other receiver is there to take the command."""


class WaitingLease(Message, frozen=True, kw_only=True):
    """A lease whose command waits on its host, as its holder reports it in a renewal."""

    lease_id: Name
    reason: Name
    until: Timestamp | None = None
    """When the wait ends by itself, by the host's clock."""
