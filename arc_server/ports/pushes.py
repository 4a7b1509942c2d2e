"""The ports for pushing: the store's part, and the dispatcher that sends envelopes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from arc_protocol.messages.leases import Envelope
from arc_server.ports.deployments import DeploymentStore
from arc_server.ports.leases import LeaseStore
from arc_server.ports.records import (
    Deployment,
    Grant,
    Granted,
    PushCircuit,
    PushLease,
    PushOutcome,
)


class PushStore(LeaseStore, DeploymentStore, Protocol):
    """Commands of deployments that are pushed to. The outbox holds their leases."""

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
        """Lease push commands of all deployments whose next delivery is due, by the rules of
        `lease`: at most `per_deployment` of each, or as many as `rooms` says of it.

        The deployment to which the fewest commands are being sent (`sending`) comes first, and of
        several the one whose first delivery is due longest.

        A command that was pushed before keeps its lease id and `lease_attempt`: its holder has not
        changed, and what it submits for the first envelope counts. One that an agent held before
        gets a new lease.
        """
        ...

    async def next_push_at(self, skipped: Collection[str] = ()) -> datetime | None:
        """Return when the earliest waiting push is due, None when none waits.

        Those of `skipped` deployments do not count.
        """
        ...

    async def put_circuit(self, circuit: PushCircuit) -> None:
        """Store the circuit of a deployment. Does nothing for one that is not pushed to."""
        ...

    async def close_circuit(self, deployment_id: str) -> None:
        """Forget the circuit of a deployment: it is closed."""
        ...

    async def list_circuits(self) -> Sequence[PushCircuit]:
        """Return all circuits that are not closed."""
        ...

    async def list_pushed(self) -> Sequence[str]:
        """Return the ids of all deployments that are pushed to."""
        ...


class PushOutlet(Protocol):
    """Sends commands that were dispatched as they were created."""

    def offer(self, deployment_id: str, now: datetime) -> PushLease | None:
        """Return a lease to dispatch a new command under; None if it has to wait for its turn.

        It holds the place of a send: call `send` or `withdraw` once for each.
        """
        ...

    def withdraw(self, deployment_id: str) -> None:
        """Give the place of an offered lease back: nothing was dispatched under it."""
        ...

    async def send(self, grant: Grant) -> None:
        """Start to send a command that was dispatched under an offered lease.

        Release its lease, at no cost of an attempt, if nothing is sent any more. Never raises for
        what the store does.
        """
        ...


class Dispatcher(Protocol):
    """Sends envelopes to the deployments that are pushed to."""

    async def push(self, deployment: Deployment, envelope: Envelope) -> PushOutcome:
        """Send once. Never raises for what the receiver does."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...
