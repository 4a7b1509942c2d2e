"""A push offer is the place of a send, kept while a command is stored that may take it."""

from __future__ import annotations

from datetime import datetime
from types import TracebackType

from arc_server.ports.pushes import PushOutlet
from arc_server.ports.records import Grant


class PushOffer:
    """The offer of an outlet for one command. As a context it gives a place back that is unused."""

    def __init__(self, outlet: PushOutlet | None, deployment_id: str, now: datetime) -> None:
        """Take what the outlet offers; without one, nothing."""
        self._outlet = outlet
        self._deployment_id = deployment_id
        self.lease = None if outlet is None else outlet.offer(deployment_id, now)
        """The lease to dispatch the command under; None if it has to wait for its turn."""
        self._is_open = self.lease is not None

    def __enter__(self) -> PushOffer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._outlet is not None and self._is_open:
            self._outlet.withdraw(self._deployment_id)

    async def send(self, grant: Grant) -> None:
        """Start to send the command that was dispatched under the lease."""
        if self._outlet is not None and self._is_open:
            self._is_open = False
            await self._outlet.send(grant)
