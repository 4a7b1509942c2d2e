"""The store's ports in one, for what opens and closes it."""

from __future__ import annotations

from typing import Protocol

from arc_server.ports.agents import AgentStore
from arc_server.ports.commands import CommandStore
from arc_server.ports.credentials import CredentialStore
from arc_server.ports.events import EventStore
from arc_server.ports.pushes import PushStore
from arc_server.ports.retention import RetentionStore
from arc_server.ports.sweeps import SweepStore


class StoreHealth(Protocol):
    """The state of the database."""

    async def check(self) -> None:
        """Raise StoreUnavailable unless the database answers and its schema is current."""
        ...

    async def checkpoint(self) -> None:
        """Write the log of changes back to the database, and give its room back to the disk.

        It is tried: while another process reads, the room stays taken.
        """
        ...

    async def reusable_bytes(self) -> int:
        """Return the bytes of the database's file that hold nothing, and are used again."""
        ...

    async def recount_usage(self, deployment_id: str) -> None:
        """Count anew what a deployment uses of its quotas. Other writes wait meanwhile."""
        ...

    async def snapshot(self) -> str:
        """Write all records, as they stand at one moment, to a file; return its path.

        The caller removes it. Raises Unavailable if there is no room, StoreUnavailable.
        """
        ...


class Store(
    CommandStore,
    PushStore,
    EventStore,
    SweepStore,
    AgentStore,
    CredentialStore,
    RetentionStore,
    StoreHealth,
    Protocol,
):
    """The store keeps all of a server's records in one database.

    A method is one transaction and one answer: durable before it returns. Every write carries the
    state (and the lease, where there is one) that it expects, and checks what it hit. Any method
    may raise StoreUnavailable; nothing was changed then.
    """

    async def close(self) -> None:
        """Commit what is queued, then close."""
        ...
