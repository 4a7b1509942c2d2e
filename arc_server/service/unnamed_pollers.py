"""Unnamed pollers: receivers of the base protocol lease without an agent id and never register."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from arc_protocol.messages.agents import DeploymentPresence, PushCircuitInfo, ReceiverInfo
from arc_protocol.messages.base import CommandTarget
from arc_server.ports.records import PushCircuit

MAX_REMEMBERED: Final = 10_000
"""Deployments that are remembered; past it, those that were silent longest are forgotten."""
MAX_TARGETS_REMEMBERED: Final = 100
"""Targets of one deployment that are remembered, in the same way."""

UNREGISTERED_SILENCE: Final = timedelta(seconds=600)
"""A receiver that does not register may be silent this long: a 1.x agent does not poll while it
runs a command, 330 s at most."""


class UnnamedPollers:
    """When each target was last polled without an agent id. Kept in memory only.

    A restart forgets it all: `watched_since` tells from when on silence means something.
    """

    def __init__(self, watched_since: datetime) -> None:
        self._watched_since = watched_since
        self._polled: dict[str, dict[CommandTarget | None, datetime]] = {}

    def mark(self, deployment_id: str, target: CommandTarget | None, now: datetime) -> bool:
        """Remember that a target was polled; None is the target of a poll that names none.

        Return True if it had not been polled for long.
        """
        targets = self._polled.pop(deployment_id, {})
        self._polled[deployment_id] = targets  # each dict stays in the order of the last polls
        before = targets.pop(target, None)
        targets[target] = now
        if len(targets) > MAX_TARGETS_REMEMBERED:
            del targets[next(iter(targets))]
        if len(self._polled) > MAX_REMEMBERED:
            del self._polled[next(iter(self._polled))]
            self._watched_since = now  # nothing may be said of a deployment that was forgotten
        return before is None or now - before >= UNREGISTERED_SILENCE

    def of(
        self,
        deployment_id: str,
        now: datetime,
        *,
        is_pushed: bool,
        circuit: PushCircuit | None = None,
    ) -> DeploymentPresence:
        """Return what is known of a deployment. `is_pushed`: it is not expected to poll; `circuit`
        is set while its push URL does not answer.
        """
        push_circuit = None
        if circuit is not None:
            push_circuit = PushCircuitInfo(
                since=circuit.opened_at, retry_at=circuit.retry_at, reason=circuit.reason
            )
        return DeploymentPresence(
            now=now,
            watched_since=self._watched_since,
            is_pushed=is_pushed,
            push_circuit=push_circuit,
            polled_at=max(self._polled.get(deployment_id, {}).values(), default=None),
        )

    @property
    def watched_since(self) -> datetime:
        """Return from when on silence means something."""
        return self._watched_since

    def polled_at(self, deployment_id: str, target_id: str) -> datetime | None:
        """Return when a target was last polled, by its name or without one."""
        targets = self._polled.get(deployment_id, {})
        ours = [at for each, at in targets.items() if each is None or each.resource_id == target_id]
        return max(ours, default=None)

    def receivers(self, deployment_id: str | None, since: datetime) -> list[ReceiverInfo]:
        """Return the targets of a deployment, or of all, that were polled after `since`."""
        asked: Iterable[str] = sorted(self._polled) if deployment_id is None else (deployment_id,)
        return [
            ReceiverInfo(deployment_id=each, target=target, last_seen_at=polled_at)
            for each in asked
            for target, polled_at in self._polled.get(each, {}).items()
            if polled_at > since
        ]
