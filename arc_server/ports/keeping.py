"""The port for what operators have removed: through a server that runs, or without one."""

from __future__ import annotations

from typing import Protocol

from arc_server.ports.records import Removed


class Keeping(Protocol):
    """Removal of commands together with their blobs."""

    async def purge(self, older_than_seconds: float | None) -> Removed:
        """Remove what has been kept for long enough, and blobs that no command names.

        Commands go that ended longer ago than `older_than_seconds`; None: as configured.
        """
        ...

    async def delete_command(self, command_id: str) -> bool:
        """Delete an ended command with its bodies. Return False if there is none.

        Raises Conflict for a live one.
        """
        ...
