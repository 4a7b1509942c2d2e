"""Waiting pushes by deployment, and circuits that are not closed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

from arc_server.ports.records import PushCircuit
from arc_server.store.engine.rows import Row, micros, moment
from arc_server.store.engine.session import StoreSession


class FirstPush(NamedTuple):
    """The first waiting push of a deployment; sorts by when it is due."""

    push_at: int
    ready_order: int
    deployment_id: str


def first_pushes(db: StoreSession) -> Sequence[FirstPush]:
    """Return the first waiting push of every deployment that has one, the earliest first."""
    rows = db.rows("first_pushes")
    return sorted(FirstPush(at, order, name) for name, at, order in rows)


def next_push_at(db: StoreSession, skipped: Collection[str]) -> datetime | None:
    """Fulfil PushStore.next_push_at."""
    for first in first_pushes(db):
        if first.deployment_id not in skipped:
            return moment(first.push_at)
    return None


def put_circuit(db: StoreSession, circuit: PushCircuit) -> None:
    """Fulfil PushStore.put_circuit."""
    db.change(
        "put_circuit",
        deployment_id=circuit.deployment_id,
        opened_at=micros(circuit.opened_at),
        retry_at=micros(circuit.retry_at),
        times=circuit.times,
        reason=circuit.reason,
    )


def close_circuit(db: StoreSession, deployment_id: str) -> None:
    """Fulfil PushStore.close_circuit."""
    db.change("close_circuit", deployment_id=deployment_id)


def find_circuit(db: StoreSession, deployment_id: str) -> PushCircuit | None:
    """Return the circuit of a deployment, None if it is closed."""
    row = db.row("find_circuit", deployment_id=deployment_id)
    return None if row is None else _circuit((deployment_id, *row))


def list_circuits(db: StoreSession) -> Sequence[PushCircuit]:
    """Fulfil PushStore.list_circuits."""
    return [_circuit(row) for row in db.rows("list_circuits")]


def list_pushed(db: StoreSession) -> Sequence[str]:
    """Fulfil PushStore.list_pushed."""
    return [name for (name,) in db.rows("list_pushed")]


def _circuit(row: Row) -> PushCircuit:
    deployment_id, opened_at, retry_at, times, reason = row
    return PushCircuit(
        deployment_id=deployment_id,
        opened_at=moment(opened_at),
        retry_at=moment(retry_at),
        times=times,
        reason=reason,
    )
