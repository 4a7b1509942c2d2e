"""Who asks for work without saying who it is: receivers of part 1 never register."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from arc_protocol.messages.agents import DeploymentPresence

_MOST: Final = 10_000
"""Deployments that are remembered; of more, those that were longest silent are forgotten."""


class Attendance:
    """When each deployment was last polled by such a receiver, in memory.

    A restart forgets it all: `watched_since` says from when on silence means something.
    """

    def __init__(self, watched_since: datetime) -> None:
        self._watched_since = watched_since
        self._polled: dict[str, datetime] = {}

    def polled(self, deployment_id: str, now: datetime) -> None:
        """Somebody asked for work."""
        self._polled.pop(deployment_id, None)  # the dict stays in the order of the last polls
        self._polled[deployment_id] = now
        if len(self._polled) > _MOST:
            del self._polled[next(iter(self._polled))]
            self._watched_since = now  # of whom was forgotten nothing may be said

    def of(self, deployment_id: str, now: datetime, *, is_pushed: bool) -> DeploymentPresence:
        """What is known of a deployment. `is_pushed`: nobody has to ask."""
        return DeploymentPresence(
            now=now,
            watched_since=self._watched_since,
            is_pushed=is_pushed,
            polled_at=self._polled.get(deployment_id),
        )
