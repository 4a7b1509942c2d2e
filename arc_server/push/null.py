"""A dispatcher that sends nothing."""

from __future__ import annotations

from arc_protocol.messages.leases import Envelope
from arc_server.ports.records import Deployment, PushOutcome


class NullDispatcher:
    """Accepts every envelope and sends none."""

    async def push(self, deployment: Deployment, envelope: Envelope) -> PushOutcome:  # noqa: ARG002
        """Accept the envelope."""
        return PushOutcome(accepted=True)

    async def close(self) -> None:
        """Do nothing."""
