"""A dispatcher for a server that pushes nothing."""

from __future__ import annotations

from arc_protocol.messages.leases import Envelope
from arc_server.ports.records import Deployment, PushOutcome


class NullDispatcher:
    """Accepts every envelope and sends none: what became of it is for its holder to say."""

    async def push(self, deployment: Deployment, envelope: Envelope) -> PushOutcome:  # noqa: ARG002
        """Accept."""
        return PushOutcome(accepted=True)

    async def close(self) -> None:
        """Nothing to close."""
