"""Unnamed pollers: receivers of the base protocol lease without an agent id and never register."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from arc_protocol.messages.agents import DeploymentPresence, ReceiverInfo
from arc_protocol.messages.base import CommandTarget

MAX_REMEMBERED: Final = 10_000
"""Deployments that are remembered; past it, those that were silent longest are forgotten."""
MAX_TARGETS_REMEMBERED: Final = 100
"""Targets of one deployment that are remembered, in the same way."""


class UnnamedPollers:
    """When each target was last polled without an agent id. Kept in memory only.

    A restart forgets it all: `watched_since` tells from when on silence means something.
    """

    def __init__(self, watched_since: datetime) -> None:
        self._watched_since = watched_since
        self._polled: dict[str, dict[CommandTarget | None, datetime]] = {}

    def mark(self, deployment_id: str, target: CommandTarget | None, now: datetime) -> None:
        """Remember that a target was polled; None is the target of a poll that names none."""
        targets = self._polled.pop(deployment_id, {})
        self._polled[deployment_id] = targets  # each dict stays in the order of the last polls
        targets.pop(target, None)
        targets[target] = now
        if len(targets) > MAX_TARGETS_REMEMBERED:
            del targets[next(iter(targets))]
        if len(self._polled) > MAX_REMEMBERED:
            del self._polled[next(iter(self._polled))]
            self._watched_since = now  # nothing may be said of a deployment that was forgotten

    def of(self, deployment_id: str, now: datetime, *, is_pushed: bool) -> DeploymentPresence:
        """Return what is known of a deployment. `is_pushed`: it is not expected to poll."""
        return DeploymentPresence(
            now=now,
            watched_since=self._watched_since,
            is_pushed=is_pushed,
            polled_at=max(self._polled.get(deployment_id, {}).values(), default=None),
        )

    def receivers(self, deployment_id: str | None, since: datetime) -> list[ReceiverInfo]:
        """Return the targets of a deployment, or of all, that were polled after `since`."""
        asked: Iterable[str] = sorted(self._polled) if deployment_id is None else (deployment_id,)
        return [
            ReceiverInfo(deployment_id=each, target=target, last_seen_at=polled_at)
            for each in asked
            for target, polled_at in self._polled.get(each, {}).items()
            if polled_at > since
        ]
