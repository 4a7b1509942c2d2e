"""Unnamed pollers: receivers of the base protocol lease without an agent id and never register."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from arc_protocol.messages.agents import DeploymentPresence

MAX_REMEMBERED: Final = 10_000
"""Deployments that are remembered; past it, those that were silent longest are forgotten."""


class UnnamedPollers:
    """When each deployment was last polled without an agent id. Kept in memory only.

    A restart forgets it all: `watched_since` tells from when on silence means something.
    """

    def __init__(self, watched_since: datetime) -> None:
        self._watched_since = watched_since
        self._polled: dict[str, datetime] = {}

    def mark(self, deployment_id: str, now: datetime) -> None:
        """Remember that a deployment was polled."""
        self._polled.pop(deployment_id, None)  # the dict stays in the order of the last polls
        self._polled[deployment_id] = now
        if len(self._polled) > MAX_REMEMBERED:
            del self._polled[next(iter(self._polled))]
            self._watched_since = now  # nothing may be said of a deployment that was forgotten

    def of(self, deployment_id: str, now: datetime, *, is_pushed: bool) -> DeploymentPresence:
        """Return what is known of a deployment. `is_pushed`: it is not expected to poll."""
        return DeploymentPresence(
            now=now,
            watched_since=self._watched_since,
            is_pushed=is_pushed,
            polled_at=self._polled.get(deployment_id),
        )
