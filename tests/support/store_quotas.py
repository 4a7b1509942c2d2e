"""Quotas for tests of the store, and what a deployment uses of them."""

from __future__ import annotations

from typing import Any

import msgspec

from arc_server.ports.records import Quotas
from arc_server.store.operations.quotas import usage_of
from arc_server.store.sqlite_store import SqliteStore
from tests.model.memory import MemoryStore


def quotas(**changes: int) -> Quotas:
    """Quotas that bound nothing but what `changes` says."""
    most: dict[str, Any] = dict.fromkeys(Quotas.__struct_fields__, 1 << 40)
    return Quotas(**(most | changes))


QUOTED = ("live_commands", "open_uploads", "stored_bytes", "idempotency_keys", "agents")


async def usage(store: SqliteStore | MemoryStore, deployment_id: str) -> dict[str, int]:
    """What a deployment uses, as the store has it committed."""
    if isinstance(store, MemoryStore):
        return store.usage(deployment_id)

    def read(db: Any) -> dict[str, int]:
        used = msgspec.structs.asdict(usage_of(db, deployment_id, is_fresh=True))
        return {name: used[name] for name in QUOTED}

    return await store.database.reads.submit(read)
