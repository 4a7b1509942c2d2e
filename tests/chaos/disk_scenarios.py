"""Commands from create to end on a watched disk, with each acknowledgement noted in the disk's log.

forked_children.py runs this in a process that was started with the shim. A note says what must be
true of one command from then on; its `stage` goes up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from arc_protocol.errors import ArcError
from arc_protocol.messages.base import CommandTarget, ResourceType
from arc_protocol.messages.bodies import ErrorResponse, StorageBody, SuccessResponse
from arc_protocol.messages.leases import LeaseInfo, LeaseRequest
from arc_server.store.engine import opening
from arc_server.store.engine.refusals import StoreRefused
from tests.chaos.disk_shim import Disk
from tests.chaos.lifecycle_calls import DEPLOYMENT, chunks, digest, inline, request
from tests.chaos.server_parts import (
    BASE_URL,
    INLINE_BYTES,
    ServerParts,
    open_server_parts,
)
from tests.support.clocks import ServerClock

CHECKPOINT_PAGES = 30
"""Few, so that checkpoints are many in a short log."""


async def perform(job: dict[str, Any]) -> dict[str, Any]:
    """Run several commands at a time, several times over; the store is closed and opened between.

    With `purges` in the job, what has succeeded is purged after each time, and orphans with it.

    With a `fault` in the job, return the errors that commands and store ended with, and whether the
    fault has come.
    """
    data_dir = Path(job["data_dir"])
    disk = Disk()
    disk.watch(data_dir, Path(job["log"]))
    set_up(synchronous=job.get("synchronous", "FULL"))
    if "fault" not in job:
        for generation in range(job["generations"]):
            clock = ServerClock()
            async with open_server_parts(data_dir, clock) as parts:
                scenarios = _scenarios(parts, disk, generation, job["commands"])
                succeeded = await asyncio.gather(*scenarios)
                if job.get("purges"):
                    clock.advance(1)
                    await _purge(parts, disk, [each for each in succeeded if each is not None])
        return {}
    fault = Fault(**job["fault"])
    ends: list[str] = []
    if fault.when == "open":
        fault.arm(disk)
    try:
        async with open_server_parts(data_dir, ServerClock()) as parts:
            if fault.when == "work":
                fault.arm(disk)
            scenarios = _scenarios(parts, disk, 0, job["commands"])
            for error in await asyncio.gather(*scenarios, return_exceptions=True):
                ends += [name_of(error)] if isinstance(error, BaseException) else []
            has_failed = parts.has_failed
    except (StoreRefused, OSError) as error:
        ends.append(name_of(error))
        has_failed = True
    return {"ends": ends, "stops": has_failed, "came": disk.has_failed()}


async def _purge(parts: ServerParts, disk: Disk, succeeded: Sequence[str]) -> None:
    """Purge commands with their blobs, and blobs that no command names."""
    for n in range(3):
        data = f"orphan {n}".encode()
        await parts.blobs.write(f"arc/commands/orphan-{n}/params", chunks(data), len(data))
    disk.note({"purging": succeeded})
    removed = await parts.retention.purge(None)
    assert removed.commands == len(succeeded), removed
    assert removed.blobs == 3, removed
    disk.note({"purged": succeeded})


class Fault(NamedTuple):
    """A failure of the disk, and when it comes."""

    kind: str
    """write or sync."""
    number: int
    """The errno."""
    n: int
    """At the N-th call."""
    is_for_ever: bool
    when: str
    """Counted from `open`, or from when the store is open and the `work` begins."""

    def arm(self, disk: Disk) -> None:
        """Let the disk fail from now on."""
        disk.fail(self.kind, self.number, self.n, ever=self.is_for_ever)


def name_of(error: BaseException) -> str:
    """Return the code of an error, or its class and message when it has none."""
    return error.code if isinstance(error, ArcError) else f"{type(error).__name__}: {error}"


def _scenarios(
    parts: ServerParts, disk: Disk, generation: int, count: int
) -> list[Coroutine[Any, Any, str | None]]:
    return [CommandScenario(parts, disk, f"{generation}-{n}").run(n) for n in range(count)]


def set_up(*, synchronous: str = "FULL") -> None:
    """Change the settings of databases that this process opens."""
    wanted = {"synchronous": synchronous, "wal_autocheckpoint": str(CHECKPOINT_PAGES)}
    for group in ("_SETTINGS", "_WRITER_SETTINGS"):
        settings = (setting.partition(" = ") for setting in getattr(opening, group))
        changed = tuple(f"{name} = {wanted.get(name, value)}" for name, _, value in settings)
        setattr(opening, group, changed)


class CommandScenario:
    """One command from its create to its end, by one of several ways."""

    def __init__(self, parts: ServerParts, disk: Disk, name: str) -> None:
        self._parts = parts
        self._disk = disk
        self._name = name
        self._target = CommandTarget(resource_id=f"t-{name}", resource_type=ResourceType.DAEMON)
        self._facts: dict[str, Any] = {"stage": 0, "response": None, "lease": None}

    def _acknowledged(self, **facts: Any) -> None:
        self._facts.update(facts, stage=self._facts["stage"] + 1)
        self._disk.note(self._facts)

    async def run(self, n: int) -> str | None:
        """Take the command the `n`-th way to its end; return its id if it has succeeded.

        One in seven stays live.
        """
        commands = self._parts.commands
        data = self._text("params", is_large=n % 2 == 0)
        is_upload = n % 3 == 0
        fields = {"idempotency_key": self._name, "target_resource_id": self._target.resource_id}
        asked = request(None, size=len(data), **fields) if is_upload else request(data, **fields)
        await self._ask()  # the agent comes first: a sender cannot name a target that is not known
        created = await commands.create(asked, base_url=BASE_URL)
        self._facts |= {"id": created.command_id, "key": self._name, "params": digest(data)}
        self._acknowledged(state=created.state, attempt=1)
        if created.storage_upload is not None:
            await self._upload(created.storage_upload.put_request.path, data)
            if n % 7 == 6:
                return None
            await commands.upload_complete(created.command_id, len(data))
            self._acknowledged(state="PENDING")
        lease = await self._lease()
        if n % 4 == 1:
            await self._parts.leases.release(lease.lease_id)
            self._acknowledged(state="PENDING", attempt=2)
            lease = await self._lease()
        await self._end(lease, n)
        return None if n % 5 == 4 else created.command_id

    async def _ask(self) -> Sequence[LeaseInfo]:
        request = LeaseRequest(deployment_id=DEPLOYMENT, target=self._target)
        return (await self._parts.leases.lease(request, base_url=BASE_URL)).leases

    async def _lease(self) -> LeaseInfo:
        [lease] = await self._ask()
        self._acknowledged(state="DISPATCHED", attempt=lease.attempt, lease=lease.lease_id)
        return lease

    async def _end(self, lease: LeaseInfo, n: int) -> None:
        submit = self._parts.leases.submit_response
        if n % 5 == 4:
            error = ErrorResponse(code="HANDLER_ERROR", message=self._name)
            await submit(lease.command_id, error, lease_id=lease.lease_id)
            self._acknowledged(state="FAILED")
            return
        data = self._text("result", is_large=n % 2 == 1)
        body = inline(data)
        if n % 4 == 3:
            upload = lease.envelope.response_handling.storage_upload_request
            await self._upload(upload.path, data)
            body = StorageBody(size=len(data), storage_put_used=True)
        await submit(lease.command_id, SuccessResponse(response=body), lease_id=lease.lease_id)
        self._acknowledged(state="SUCCEEDED", response=digest(data))

    async def _upload(self, path: str, data: bytes) -> None:
        await self._parts.blobs.write(path, chunks(data), len(data))
        if len(data) > INLINE_BYTES:  # a small one moves into the database
            self._disk.note({"blob": path, "digest": digest(data)})

    def _text(self, what: str, *, is_large: bool) -> bytes:
        return f"{what} of {self._name}. ".encode() * (50 if is_large else 1)
