"""The model of the store: dictionaries, lists in order, and the rules spelled out.

The suites compare the SQLite store with it, and unit tests of CommandService run on it. It keeps
nothing durably, and is not fast.
"""

from __future__ import annotations

from arc_protocol.errors import StoreUnavailable
from tests.model.commands import ModelCommands
from tests.model.directory import ModelDirectory
from tests.model.search import ModelSearch
from tests.model.sweeps import ModelSweeps


class MemoryStore(ModelCommands, ModelSearch, ModelSweeps, ModelDirectory):
    """Store without a database."""

    async def checkpoint(self) -> None:
        """See Store."""

    async def reusable_bytes(self) -> int:
        """See Store."""
        return 0

    async def recount_usage(self, deployment_id: str) -> None:
        """See Store."""

    async def snapshot(self) -> str:
        """See Store."""
        raise StoreUnavailable("the model has no file")

    async def check(self) -> None:
        """See Store."""
        self._check_open()

    async def close(self) -> None:
        """See Store."""
        self._is_closed = True
