"""Deployments share the writer: one with a long queue keeps no other waiting."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from arc_protocol.errors import StoreUnavailable
from arc_runtime import failpoints
from arc_server.store.engine import batches, transactions
from arc_server.store.sqlite_store import SqliteStore
from tests.support.store_quotas import usage
from tests.support.store_samples import DEPLOYMENT, after, create, granted_ids, lease, new

PATIENCE_SECONDS = 10


class Gate:
    """Holds up the writing thread until it is opened."""

    def __init__(self, store: SqliteStore) -> None:
        self._opened = threading.Event()
        self._begun = threading.Event()
        self.passed = store.database.writes.submit(self._wait)

    def _wait(self, _: Any) -> None:
        self._begun.set()
        assert self._opened.wait(PATIENCE_SECONDS)

    async def closed(self) -> Gate:
        """Return once the writer waits."""
        await asyncio.to_thread(self._begun.wait, PATIENCE_SECONDS)
        return self

    async def open(self) -> None:
        self._opened.set()
        await self.passed


async def test_a_batch_takes_from_all_deployments_in_turns(sqlite: SqliteStore) -> None:
    gate = await Gate(sqlite).closed()
    ran: list[tuple[str, int]] = []

    def run(name: str, number: int) -> asyncio.Future[None]:
        return sqlite.database.writes.submit(lambda _: ran.append((name, number)), queue=name)

    waiting = [run("busy", number) for number in range(50)]
    waiting += [run("lone", number) for number in range(2)]
    await gate.open()
    await asyncio.gather(*waiting)

    assert [ran.index(("lone", number)) for number in range(2)] == [1, 3]
    assert [number for name, number in ran if name == "busy"] == list(range(50))


async def test_a_deployment_with_a_long_queue_leaves_room_for_others(
    sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MAX_WAITING", 4)
    gate = await Gate(sqlite).closed()
    busy = [asyncio.ensure_future(sqlite.create(new())) for _ in range(3)]
    await asyncio.sleep(0)
    lone = asyncio.ensure_future(sqlite.create(new(deployment_id="lone")))
    await asyncio.sleep(0)

    await gate.open()
    outcomes = await asyncio.gather(*busy, lone, return_exceptions=True)

    assert [isinstance(outcome, StoreUnavailable) for outcome in outcomes] == [
        False,
        False,
        True,
        False,
    ]


async def test_a_batch_that_takes_long_ends_and_the_rest_goes_into_the_next(
    sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "MAX_SECONDS", 0)
    commits: list[str] = []
    monkeypatch.setattr(
        failpoints, "hit", lambda name: commits.append(name) if "after_commit" in name else None
    )
    taken = await create(sqlite)
    commits.clear()
    each = [new() for _ in range(4)]

    outcomes = await asyncio.gather(
        *(sqlite.create(one) for one in (*each[:2], new(command_id=taken.command_id), *each[2:])),
        return_exceptions=True,
    )

    assert [isinstance(outcome, Exception) for outcome in outcomes] == [
        *(False, False, True, False, False)
    ]
    assert len(commits) == 5, "one operation in each"
    assert (await usage(sqlite, DEPLOYMENT))["live_commands"] == 5
    assert len(granted_ids(await lease(sqlite, 10, after(1)))) == 5
