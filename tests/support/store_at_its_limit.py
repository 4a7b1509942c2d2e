"""A process with a store that meets a limit of its machine, and says what became of it.

    python -m tests.support.store_at_its_limit DIRECTORY full | too-large

Answers one line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from arc_protocol.errors import StoreUnavailable
from arc_server.ports.records import StoredInline
from arc_server.store.sqlite_store import SqliteStore
from tests.support.store_samples import create, lease, read

BODY = StoredInline(data=os.urandom(20_000))


async def fill(store: SqliteStore) -> list[str]:
    """Create until it is refused; what was acknowledged."""
    acknowledged: list[str] = []
    with contextlib.suppress(StoreUnavailable):
        while len(acknowledged) < 1_000:
            acknowledged.append((await create(store, params=BODY)).command_id)
    return acknowledged


async def all_there(store: SqliteStore, command_ids: list[str]) -> bool:
    return all([(await read(store, each)).command_id == each for each in command_ids])


async def full_disk(directory: Path) -> dict[str, Any]:
    """The disk is full, then there is room again."""
    store = await SqliteStore.open(directory / "arc.db")
    ballast = directory / "ballast"
    ballast.write_bytes(b"\0" * 600_000)
    acknowledged = await fill(store)
    refused = await asyncio.gather(
        *(create(store, params=BODY) for _ in range(20)), return_exceptions=True
    )
    reads_go_on = await all_there(store, acknowledged)
    ballast.unlink()
    later = (await create(store, params=BODY)).command_id
    has_failed = store.database._failed.is_set()
    await store.close()
    store = await SqliteStore.open(directory / "arc.db")
    answer = {
        "acknowledged": len(acknowledged),
        "refused": sum(isinstance(each, StoreUnavailable) for each in refused),
        "reads_go_on": reads_go_on,
        "has_failed": has_failed,
        "all_there": await all_there(store, [*acknowledged, later]),
        "leased": len((await lease(store, 1_000)).grants),
    }
    await store.close()
    return answer


async def too_large(directory: Path) -> dict[str, Any]:
    """A write to the database's files fails with an I/O error, then would not any more."""
    store = await SqliteStore.open(directory / "arc.db")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    used = (directory / "arc.db-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (used + 700_000, hard))
    acknowledged = await fill(store)
    reason = await asyncio.wait_for(store.wait_failed(), 5)
    reads_go_on = await all_there(store, acknowledged)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    refused = 0
    for call in (create(store), store.check()):
        try:
            await call
        except StoreUnavailable:
            refused += 1
    await store.close()
    store = await SqliteStore.open(directory / "arc.db")
    await create(store)
    answer = {
        "acknowledged": len(acknowledged),
        "reason": reason,
        "reads_go_on": reads_go_on,
        "refused": refused,
        "all_there": await all_there(store, acknowledged),
    }
    await store.close()
    return answer


def main() -> None:
    """Run one."""
    directory, limit = Path(sys.argv[1]), sys.argv[2]
    print(json.dumps(asyncio.run({"full": full_disk, "too-large": too_large}[limit](directory))))


if __name__ == "__main__":
    main()
