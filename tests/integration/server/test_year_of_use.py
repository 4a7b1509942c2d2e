"""A year of use in fast motion: what is kept levels off, and so does the data directory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from arc_protocol.messages.events import EventsRequest, LogLine
from arc_server.blobs.local import LocalBlobStore
from arc_server.ports.records import (
    FIRST_EPOCH,
    NewCommand,
    Quotas,
    StoredBlob,
    StoredInline,
    StoredSuccess,
)
from arc_server.server_keys import Signer
from arc_server.service.announcements import Announcements
from arc_server.service.blob_paths import params_path
from arc_server.service.retention import Retention, RetentionLimits
from arc_server.service.uploads import Uploads
from arc_server.store.sqlite_store import SqliteStore
from tests.chaos.scratch import in_memory
from tests.support.clocks import ServerClock
from tests.support.store_samples import HANDLER_ERROR, RESULT, query

DAY = 86_400.0
LIMITS = RetentionLimits(
    succeeded_seconds=30 * DAY, failed_seconds=60 * DAY, events_seconds=7 * DAY, pause_seconds=0
)
LARGE = b"x" * 20_000
PER_DAY = int(os.environ.get("YEAR_PER_DAY", "2740"))
"""In the long test: a million in a year."""


class Year:
    """A server's store and blobs, with days that pass when they are told to."""

    def __init__(self, store: SqliteStore, blobs: LocalBlobStore, per_day: int) -> None:
        self.store = store
        self.blobs = blobs
        self.clock = ServerClock()
        self.retention = Retention(
            store=store,
            blobs=blobs,
            uploads=Uploads(store, FIRST_EPOCH, Quotas()),
            announcements=Announcements(),
            clock=self.clock,
            limits=LIMITS,
        )
        self._per_day = per_day
        self._number = 0

    async def day(self) -> None:
        """Let one day pass: commands are created, leased, end, and are purged when it is time."""
        left = self._per_day
        while left:
            count = min(left, 500)
            await asyncio.gather(*(self._create() for _ in range(count)))
            granted = await self.store.lease(query(count), self.clock.now())
            await asyncio.gather(*(self._end(each.command) for each in granted.grants))
            left -= count
        self.clock.advance(DAY)
        await self.retention.sweep()
        before = self.clock.now()
        while await self.store.forget_idempotency_keys(before, 500):
            pass

    async def _create(self) -> None:
        self._number += 1
        number = self._number
        command_id = f"cmd_{number:012}"
        params: Any = StoredInline(data=b"{}" * 100)
        if number % 50 == 0:
            path = params_path(command_id)
            await self.blobs.write(path, chunks(LARGE), len(LARGE))
            params = StoredBlob(path=path, size=len(LARGE))
        await self.store.create(
            NewCommand(
                command_id=command_id,
                deployment_id="dep-1",
                target_resource_id=None,
                command="report",
                params=params,
                params_digest=b"digest",
                max_attempts=3,
                created_at=self.clock.now(),
                idempotency_key=f"key-{number}",
                auto_register=True,
            )
        )

    async def _end(self, command: Any) -> None:
        number = int(command.command_id.removeprefix("cmd_"))
        if number % 10 == 0:
            lines = [
                LogLine(number=n, at=self.clock.now(), level="info", message="x" * 50)
                for n in range(1, 6)
            ]
            said = EventsRequest(lease_id=command.lease_id, lines=lines)
            await self.store.add_events(command.command_id, said, 100)
        response: Any = HANDLER_ERROR if number % 20 == 0 else RESULT
        if number % 51 == 0:
            response = StoredSuccess(body=StoredInline(data=LARGE))
        await self.store.complete(command.command_id, command.lease_id, response, self.clock.now())


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data


def size_of(directory: Path) -> int:
    """Return the bytes of all files below a directory."""
    return sum(
        (Path(place) / name).stat().st_size
        for place, _, names in os.walk(directory)
        for name in names
    )


async def sizes_of_a_year(directory: Path, *, days: int, per_day: int) -> list[int]:
    """Return the size of the data directory at the end of each day."""
    store = await SqliteStore.open(directory / "arc.db")
    blobs = LocalBlobStore(directory / "blobs", Signer(directory / "keys"))
    year = Year(store, blobs, per_day)
    sizes: list[int] = []
    for _ in range(days):
        await year.day()
        sizes.append(size_of(directory))
    files = [path for path in (directory / "blobs" / "arc").rglob("*") if path.is_file()]
    assert len(files) <= 30 * per_day / 50 + 1, "the bodies of 30 days"
    await blobs.close()
    await store.close()
    return sizes


def levels_off(sizes: list[int]) -> bool:
    """Return True if the directory is as large after the year as once all ages were reached."""
    full = max(sizes[60:90])  # the longest age is 60 days
    return max(sizes[90:]) <= 1.05 * full


async def test_the_data_directory_levels_off_within_a_year(tmp_path: Path) -> None:
    with in_memory(tmp_path) as directory:
        sizes = await sizes_of_a_year(directory, days=150, per_day=12)

    assert levels_off(sizes), sizes
    assert sizes[20] > 1.5 * sizes[5], "it grows at first"


@pytest.mark.chaos
@pytest.mark.timeout(3_000)
async def test_a_million_commands_of_a_year_leave_a_directory_that_levels_off(
    tmp_path: Path,
) -> None:
    with in_memory(tmp_path) as directory:
        sizes = await sizes_of_a_year(directory, days=365, per_day=PER_DAY)

    mega = [f"{sizes[day - 1] / 1e6:.0f}" for day in (30, 60, 90, 180, 270, 365)]
    print(f"a year, {365 * PER_DAY:,} commands: {mega} MB after 30, 60, 90, 180, 270 and 365 days")
    assert levels_off(sizes), sizes
