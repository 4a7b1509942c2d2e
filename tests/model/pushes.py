"""Pushes in the model: what is owed to receivers, and when."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from arc_protocol.messages.base import State
from arc_server.ports.records import CommandRecord, Grant, Granted, PushCircuit
from tests.model.records import (
    Place,
    StoredCommand,
    push_time,
    push_time_from,
    waits_unqueued,
)
from tests.model.state import ModelState


class ModelPushes(ModelState):
    """Leases commands that are pushed, and remembers receivers that are away."""

    async def lease_push(
        self,
        lease_ids: Sequence[str],
        lease_seconds: float,
        now: datetime,
        *,
        rooms: Mapping[str, int] | None = None,
        per_deployment: int | None = None,
        sending: Mapping[str, int] | None = None,
    ) -> Granted:
        """See Store."""
        self._check_open()
        queues: dict[str, list[StoredCommand]] = {}
        for stored in self._waiting_pushes():
            if push_time(stored) <= now:
                queues.setdefault(stored.command.deployment_id, []).append(stored)
        grants: list[Grant] = []
        ended: list[CommandRecord] = []
        for deployment_id in sorted(queues, key=lambda name: (sending or {}).get(name, 0)):
            queue = queues[deployment_id]
            left = lease_ids[len(grants) :]
            room = len(left) if per_deployment is None else per_deployment
            room = (rooms or {}).get(deployment_id, room)
            if left[:room]:
                granted = self._grant(queue, left[:room], lease_seconds, None, now)
                grants += granted.grants
                ended += granted.ended
        return Granted(grants=grants, ended=ended)

    async def next_push_at(self, skipped: Collection[str] = ()) -> datetime | None:
        """See Store."""
        self._check_open()
        waiting = self._waiting_pushes()
        return next(
            (push_time(each) for each in waiting if each.command.deployment_id not in skipped), None
        )

    async def put_circuit(self, circuit: PushCircuit) -> None:
        """See Store."""
        place = self._places.get(circuit.deployment_id)
        if place is not None and place.push_url is not None:
            place.circuit = circuit

    async def close_circuit(self, deployment_id: str) -> None:
        """See Store."""
        if place := self._places.get(deployment_id):
            place.circuit = None

    async def list_circuits(self) -> Sequence[PushCircuit]:
        """See Store."""
        return [place.circuit for _, place in sorted(self._places.items()) if place.circuit]

    async def list_pushed(self) -> Sequence[str]:
        """See Store."""
        return [name for name, place in sorted(self._places.items()) if place.push_url is not None]

    async def set_push(
        self,
        deployment_id: str,
        push_url: str | None,
        push_token: str | None,
        now: datetime,
        by: str | None = None,
    ) -> bool:
        """See Store."""
        self._check_open()
        if push_url is None and deployment_id not in self._places:
            return False
        place = self._places.setdefault(deployment_id, Place())
        self._set_push(deployment_id, push_url, push_token, now, by if push_url else None)
        place.circuit = None
        return True

    async def seal_push_token(self, deployment_id: str, former: str, sealed: str) -> None:
        """See Store."""
        place = self._places.get(deployment_id)
        if place is not None and place.push_token == former:
            place.push_token = sealed

    def _set_push(
        self, deployment_id: str, url: str | None, token: str | None, now: datetime, by: str | None
    ) -> None:
        place = self._places[deployment_id]
        if place.push_url != url:
            place.circuit = None
        is_changed = (place.push_url is None) is not (url is None)
        place.push_url, place.push_token, place.push_by = url, token, by
        for stored in self._live(lambda command: command.deployment_id == deployment_id):
            if is_changed:
                self._set(stored, is_push=url is not None)
                stored.push_at = push_time_from(stored.command, now)
                if waits_unqueued(stored.command, now):
                    stored.ready_order = None
                elif stored.ready_order is None:
                    stored.ready_order = stored.seq

    def _waiting_pushes(self) -> Sequence[StoredCommand]:
        return sorted(
            (
                stored
                for stored in self._commands.values()
                if stored.command.state is State.PENDING and stored.command.is_push
            ),
            key=lambda stored: (push_time(stored), stored.ready_order or 0),
        )
