"""Everything that changes what is stored, as something that can be prepared, done and done again.

Run by nursery.py in a process of its own, that may die at any point of `act`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from arc_protocol.messages.bodies import ErrorResponse, StorageBody, SuccessResponse
from arc_protocol.messages.leases import LeaseRequest
from arc_server.ports.records import (
    CommandFilter,
    StoredInline,
)

from . import deeds
from .deeds import DEPLOYMENT, LARGE, SMALL, Answer, Notes
from .house import BASE_URL, START, House, SetClock, open_house

ACT_AT = 10.0
"""Seconds after the start."""
SETTLE_AT = 100_000.0


class Operation(NamedTuple):
    """One operation of the walk."""

    name: str
    prepare: Callable[[House], Awaitable[Notes]]
    act: Callable[[House, Notes], Awaitable[Answer]]
    again: Answer | None = None
    """What a repeat hears when the first time has taken effect; None: the same."""


REFUSED_UPLOAD = {"refused": "INVALID_STATE_TRANSITION"}
NO_LEASE = {"refused": "LEASE_NOT_FOUND"}
GOOD = SuccessResponse(response=deeds.inline(b"result"))
STORED = SuccessResponse(response=StorageBody(size=len(LARGE), storage_put_used=True))

OPERATIONS = (
    Operation("create", deeds.nothing, lambda h, _: deeds.create(h, idempotency_key="once")),
    Operation(
        "create.target",
        deeds.created,
        lambda h, _: deeds.create(h, idempotency_key="once", target_resource_id="t-1"),
    ),
    Operation(
        "create.promoted",
        deeds.nothing,
        lambda h, _: deeds.create(h, data=LARGE, idempotency_key="x"),
    ),
    Operation(
        "create.storage",
        deeds.nothing,
        lambda h, _: deeds.create(h, data=None, idempotency_key="x"),
    ),
    Operation(
        "create.replay", deeds.replayed, lambda h, _: deeds.create(h, idempotency_key="once")
    ),
    Operation(
        "create.reused_key",
        deeds.replayed,
        lambda h, _: deeds.create(h, data=LARGE, idempotency_key="once"),
    ),
    Operation(
        "upload.small", lambda h: deeds.awaiting(h, SMALL), deeds.upload_complete, REFUSED_UPLOAD
    ),
    Operation(
        "upload.large", lambda h: deeds.awaiting(h, LARGE), deeds.upload_complete, REFUSED_UPLOAD
    ),
    Operation(
        "blob.write",
        lambda h: deeds.awaiting(h, LARGE, is_uploaded=False),
        lambda h, n: deeds.write_blob(h, n, LARGE),
    ),
    Operation(
        "blob.replace",
        lambda h: deeds.awaiting(h, LARGE),
        lambda h, n: deeds.write_blob(h, n, LARGE),
    ),
    Operation("lease", deeds.created, lambda h, _: deeds.lease_ids(h, 1), {"leases": []}),
    Operation(
        "lease.batch",
        lambda h: deeds.created(h, 3),
        lambda h, _: deeds.lease_ids(h, 5),
        {"leases": []},
    ),
    Operation(
        "lease.overdue",
        lambda h: deeds.created(h, 2, deadline=START + timedelta(seconds=5)),
        lambda h, _: deeds.lease_ids(h, 1),
    ),
    Operation(
        "lease.registers", deeds.created, lambda h, _: deeds.lease_as(h, "t-1"), {"leases": []}
    ),
    Operation("renew", lambda h: deeds.leased(h, 2), deeds.renew),
    Operation("respond.success", deeds.leased, lambda h, n: deeds.respond(h, n, GOOD)),
    Operation(
        "respond.error",
        deeds.leased,
        lambda h, n: deeds.respond(h, n, ErrorResponse(code="HANDLER_ERROR", message="no")),
    ),
    Operation(
        "respond.promoted",
        deeds.leased,
        lambda h, n: deeds.respond(h, n, SuccessResponse(response=deeds.inline(LARGE))),
    ),
    Operation("respond.stored", deeds.awaiting_response, lambda h, n: deeds.respond(h, n, STORED)),
    Operation(
        "respond.overdue",
        lambda h: deeds.leased(h, deadline=START + timedelta(seconds=5)),
        lambda h, n: deeds.respond(h, n, GOOD),
    ),
    Operation("respond.lapsed", lambda h: deeds.lapsed(h), lambda h, n: deeds.respond(h, n, GOOD)),
    Operation(
        "respond.together",
        lambda h: deeds.leased(h, 3),
        lambda h, n: deeds.respond_to_all(h, n, GOOD),
    ),
    Operation("release", deeds.leased, deeds.release, NO_LEASE),
    Operation("release.drain", deeds.leased, lambda h, n: deeds.release(h, n, False), NO_LEASE),
    Operation("release.last", lambda h: deeds.leased(h, max_attempts=1), deeds.release, NO_LEASE),
    Operation("cancel.pending", deeds.created, deeds.cancel),
    Operation("cancel.uploading", lambda h: deeds.awaiting(h, SMALL), deeds.cancel),
    Operation("cancel.dispatched", deeds.leased, deeds.cancel),
    Operation(
        "sweep.lapse",
        lambda h: deeds.leased(h, 3, seconds=5),
        lambda h, _: deeds.count_of(h.store.requeue_lapsed(h.clock.now(), 10)),
        {"changed": 0},
    ),
    Operation(
        "sweep.expiry",
        deeds.for_the_sweep,
        lambda h, _: deeds.count_of(h.store.expire_due(h.clock.now(), 10)),
        {"changed": 0},
    ),
    Operation("sweep.tick", deeds.for_the_sweep, lambda h, _: deeds.tick(h)),
    Operation("group", lambda h: deeds.leased(h, 2), deeds.several),
    Operation("push.lease", deeds.pushed, lambda h, _: deeds.lease_push(h), {"pushed": []}),
    Operation("push.configure", deeds.created, lambda h, _: deeds.configured(h)),
    Operation("agent.register", deeds.nothing, lambda h, _: deeds.register(h)),
    Operation("token.revoke", deeds.put_token, lambda h, _: deeds.revoke(h)),
)
BY_NAME = {operation.name: operation for operation in OPERATIONS}
TICK_BY_TICK = frozenset({"sweep.tick"})
"""Several transactions: what lies between them is neither before nor after."""


# what the nursery runs


async def perform(job: dict[str, Any]) -> Answer:
    """One job: `open`, `prepare`, `act` or `settle` on a data directory."""
    data_dir = Path(job["data_dir"])
    if job["do"] == "open":
        async with open_house(data_dir, SetClock()):
            return {}
    operation = BY_NAME[job["operation"]]
    if job["do"] == "prepare":
        async with open_house(data_dir, SetClock()) as house:
            return await operation.prepare(house)
    if job["do"] == "act":
        async with open_house(data_dir, SetClock(START + timedelta(seconds=ACT_AT))) as house:
            return json.loads(json.dumps(await operation.act(house, job["notes"])))
    async with open_house(data_dir, SetClock(START + timedelta(seconds=SETTLE_AT))) as house:
        return await settle(house)


async def settle(house: House) -> Answer:
    """Bring everything to its end, and tell of each command how it ended and what its params are.

    What is live must be leasable or waiting for an upload: nothing may be stuck.
    """
    now = house.clock.now()
    while await house.store.requeue_lapsed(now, 100):
        pass
    while await house.store.expire_due(now, 100):
        pass
    commands = (await house.store.list(CommandFilter(), None, 1000)).commands
    targets = {each.target.resource_id: each.target for each in commands}
    held: list[tuple[str, str]] = []
    for target in targets.values():
        answer = await house.service.lease(
            LeaseRequest(deployment_id=DEPLOYMENT, target=target, max_leases=1000),
            base_url=BASE_URL,
        )
        held += [(each.command_id, each.lease_id) for each in answer.leases]
    pushes = await house.store.lease_push([f"lease_p{n}" for n in range(99)], 60, now)
    held += [(each.command.command_id, each.command.lease_id or "") for each in pushes.grants]
    for command_id, lease_id in held:
        await house.service.submit_response(command_id, GOOD, lease_id=lease_id)
    for each in commands:
        if each.state == "PENDING_UPLOAD":
            await house.service.cancel(each.command_id)
    ends: Answer = {}
    for each in commands:
        stored = await house.store.get_with_bodies(each.command_id)
        assert stored is not None
        ends[each.command_id] = [stored.command.state, await _digest_of(house, stored.params)]
    return ends


async def _digest_of(house: House, params: Any) -> str | None:
    if isinstance(params, StoredInline):
        return deeds.digest(params.data)
    if getattr(params, "size", None) is None:
        return None
    if await house.blobs.size(params.path) is None:
        return None
    return deeds.digest(b"".join([chunk async for chunk in house.blobs.read(params.path)]))
