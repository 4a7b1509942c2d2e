"""The port for retention: removing what has been kept for long enough."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from arc_protocol.messages.base import State
from arc_server.ports.records import CommandRecord, Purged, StripMark, Stripped


class RetentionStore(Protocol):
    """Removal in small batches.

    A batch ends after `limit` steps, and in SQLite after a few milliseconds, whichever comes first:
    no other write waits long behind one.
    """

    async def fail_abandoned_uploads(
        self, before: datetime, now: datetime, limit: int
    ) -> Sequence[CommandRecord]:
        """End commands that were created before then and still wait for their params as FAILED.

        Return the commands that have ended.
        """
        ...

    async def left_uploads(self, limit: int) -> Sequence[str]:
        """Return commands that have ended before their params were confirmed, and whose uploads
        still count (`CommandStore.mark_arrived`)."""
        ...

    async def forget_uploads(self, command_ids: Sequence[str]) -> None:
        """Count the uploads of such commands no more: they were removed."""
        ...

    async def purge_commands(
        self, state: State, ended_before: datetime, keys_before: datetime, limit: int
    ) -> Purged:
        """Delete commands that ended in `state` before then, the longest ended first.

        Their bodies and events go with them, and idempotency keys that were made before
        `keys_before`. A younger key stays: a create with it gets Conflict, and nothing runs twice.
        """
        ...

    async def strip_bodies(
        self, state: State, since: StripMark, ended_before: datetime, limit: int
    ) -> Stripped:
        """Remove the bodies of commands that ended in `state` after `since` and before then.

        The commands stay, with their errors.
        """
        ...

    async def strip_events(
        self, state: State, since: StripMark, ended_before: datetime, limit: int
    ) -> Stripped:
        """Remove the events of commands that ended in `state` after `since` and before then."""
        ...

    async def purge_agents(self, before: datetime, limit: int) -> int:
        """Remove agents that were last seen before then. Return how many."""
        ...

    async def purge_tokens(self, before: datetime, limit: int) -> int:
        """Remove tokens and enrolment tokens that were revoked or expired before then, and
        credentials that were revoked before then. Return how many.

        The journal of what has ended forgets those that a restore could not bring back to life.
        """
        ...

    async def delete_command(self, command_id: str) -> bool:
        """Delete an ended command. Return False if there is no such command.

        Its idempotency key stays used for its time. Raises Conflict for a live one.
        """
        ...

    async def remove_agent(self, deployment_id: str, agent_id: str) -> bool:
        """Remove an agent from the directory. Return False if there is none.

        Raises Conflict while it holds a command.
        """
        ...

    async def remove_deployment(self, deployment_id: str, now: datetime) -> bool:
        """Remove a deployment with its targets and agents. Return False if there is none.

        Its ended commands stay for their time. Raises Conflict while it has live commands,
        credentials that were not revoked or enrolment tokens that are good.
        """
        ...
