"""Every operation that changes what is stored, in three parts: prepare it, do it, do it again.

forked_children.py runs each in a process of its own, which may be killed at any point of `act`.
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
from tests.chaos import lifecycle_calls as calls
from tests.chaos.lifecycle_calls import DEPLOYMENT, LARGE, SMALL, Answer, Notes
from tests.chaos.server_parts import BASE_URL, ServerParts, open_server_parts
from tests.support.clocks import START, ServerClock

ACT_AT = 10.0
"""Seconds after the start."""
SETTLE_AT = 100_000.0


class Operation(NamedTuple):
    """One operation of the walk."""

    name: str
    prepare: Callable[[ServerParts], Awaitable[Notes]]
    act: Callable[[ServerParts, Notes], Awaitable[Answer]]
    again: Answer | None = None
    """What a repeat hears when the first time has taken effect; None: the same."""


REFUSED_UPLOAD = {"refused": "INVALID_STATE_TRANSITION"}
NO_LEASE = {"refused": "LEASE_NOT_FOUND"}
GOOD = SuccessResponse(response=calls.inline(b"result"))
STORED = SuccessResponse(response=StorageBody(size=len(LARGE), storage_put_used=True))

OPERATIONS = (
    Operation(
        "create",
        calls.nothing,
        lambda h, _: calls.create(h, idempotency_key="once"),
    ),
    Operation(
        "create.target",
        calls.created,
        lambda h, _: calls.create(h, idempotency_key="once", target_resource_id="t-1"),
    ),
    Operation(
        "create.promoted",
        calls.nothing,
        lambda h, _: calls.create(h, data=LARGE, idempotency_key="x"),
    ),
    Operation(
        "create.storage",
        calls.nothing,
        lambda h, _: calls.create(h, data=None, idempotency_key="x"),
    ),
    Operation(
        "create.replay",
        calls.replayed,
        lambda h, _: calls.create(h, idempotency_key="once"),
    ),
    Operation(
        "create.reused_key",
        calls.replayed,
        lambda h, _: calls.create(h, data=LARGE, idempotency_key="once"),
    ),
    Operation(
        "upload.small",
        lambda h: calls.awaiting(h, SMALL),
        calls.upload_complete,
        REFUSED_UPLOAD,
    ),
    Operation(
        "upload.large",
        lambda h: calls.awaiting(h, LARGE),
        calls.upload_complete,
        REFUSED_UPLOAD,
    ),
    Operation(
        "blob.write",
        lambda h: calls.awaiting(h, LARGE, is_uploaded=False),
        lambda h, n: calls.write_blob(h, n, LARGE),
    ),
    Operation(
        "blob.replace",
        lambda h: calls.awaiting(h, LARGE),
        lambda h, n: calls.write_blob(h, n, LARGE),
    ),
    Operation(
        "lease",
        calls.created,
        lambda h, _: calls.lease_ids(h, 1),
        {"leases": []},
    ),
    Operation(
        "lease.batch",
        lambda h: calls.created(h, 3),
        lambda h, _: calls.lease_ids(h, 5),
        {"leases": []},
    ),
    Operation(
        "lease.overdue",
        lambda h: calls.created(h, 2, deadline=START + timedelta(seconds=5)),
        lambda h, _: calls.lease_ids(h, 1),
    ),
    Operation(
        "lease.registers",
        calls.created,
        lambda h, _: calls.lease_as(h, "t-1"),
        {"leases": []},
    ),
    Operation("renew", lambda h: calls.leased(h, 2), calls.renew),
    Operation("respond.success", calls.leased, lambda h, n: calls.respond(h, n, GOOD)),
    Operation(
        "respond.error",
        calls.leased,
        lambda h, n: calls.respond(h, n, ErrorResponse(code="HANDLER_ERROR", message="no")),
    ),
    Operation(
        "respond.promoted",
        calls.leased,
        lambda h, n: calls.respond(h, n, SuccessResponse(response=calls.inline(LARGE))),
    ),
    Operation(
        "respond.stored",
        calls.awaiting_response,
        lambda h, n: calls.respond(h, n, STORED),
    ),
    Operation(
        "respond.overdue",
        lambda h: calls.leased(h, deadline=START + timedelta(seconds=5)),
        lambda h, n: calls.respond(h, n, GOOD),
    ),
    Operation(
        "respond.lapsed",
        lambda h: calls.lapsed(h),
        lambda h, n: calls.respond(h, n, GOOD),
    ),
    Operation(
        "respond.together",
        lambda h: calls.leased(h, 3),
        lambda h, n: calls.respond_to_all(h, n, GOOD),
    ),
    Operation("release", calls.leased, calls.release, NO_LEASE),
    Operation(
        "release.drain",
        calls.leased,
        lambda h, n: calls.release(h, n, False),
        NO_LEASE,
    ),
    Operation(
        "release.last",
        lambda h: calls.leased(h, max_attempts=1),
        calls.release,
        NO_LEASE,
    ),
    Operation("cancel.pending", calls.created, calls.cancel),
    Operation("cancel.uploading", lambda h: calls.awaiting(h, SMALL), calls.cancel),
    Operation("cancel.dispatched", calls.leased, calls.cancel),
    Operation(
        "sweep.lapse",
        lambda h: calls.leased(h, 3, seconds=5),
        lambda h, _: calls.count_of(h.store.requeue_lapsed(h.clock.now(), 10)),
        {"changed": 0},
    ),
    Operation(
        "sweep.expiry",
        calls.for_the_sweep,
        lambda h, _: calls.count_of(h.store.expire_due(h.clock.now(), 10)),
        {"changed": 0},
    ),
    Operation("sweep.tick", calls.for_the_sweep, lambda h, _: calls.tick(h)),
    Operation("group", lambda h: calls.leased(h, 2), calls.several),
    Operation(
        "push.lease",
        calls.pushed,
        lambda h, _: calls.lease_push(h),
        {"pushed": []},
    ),
    Operation("push.configure", calls.created, lambda h, _: calls.configured(h)),
    Operation("retention.purge", calls.purgeable, lambda h, _: calls.purge(h)),
    Operation("agent.register", calls.nothing, lambda h, _: calls.register(h)),
    Operation("token.revoke", calls.put_token, lambda h, _: calls.revoke(h)),
)
BY_NAME = {operation.name: operation for operation in OPERATIONS}
TICK_BY_TICK = frozenset({"sweep.tick", "retention.purge"})
"""Several transactions: what lies between them is neither before nor after."""


# what the children runs


async def perform(job: dict[str, Any]) -> Answer:
    """One job: `open`, `prepare`, `act` or `settle` on a data directory."""
    data_dir = Path(job["data_dir"])
    if job["do"] == "open":
        async with open_server_parts(data_dir, ServerClock()):
            return {}
    operation = BY_NAME[job["operation"]]
    if job["do"] == "prepare":
        async with open_server_parts(data_dir, ServerClock()) as parts:
            return await operation.prepare(parts)
    if job["do"] == "act":
        async with open_server_parts(
            data_dir, ServerClock(START + timedelta(seconds=ACT_AT))
        ) as parts:
            return json.loads(json.dumps(await operation.act(parts, job["notes"])))
    async with open_server_parts(
        data_dir, ServerClock(START + timedelta(seconds=SETTLE_AT))
    ) as parts:
        return await settle(parts)


async def settle(parts: ServerParts) -> Answer:
    """Bring everything to its end, and tell of each command how it ended and what its params are.

    What is live must be leasable or waiting for an upload: nothing may be stuck.
    """
    now = parts.clock.now()
    while await parts.store.requeue_lapsed(now, 100):
        pass
    while await parts.store.expire_due(now, 100):
        pass
    commands = (await parts.store.list(CommandFilter(), None, 1000)).commands
    targets = {each.target.resource_id: each.target for each in commands}
    held: list[tuple[str, str]] = []
    for target in targets.values():
        answer = await parts.leases.lease(
            LeaseRequest(deployment_id=DEPLOYMENT, target=target, max_leases=1000),
            base_url=BASE_URL,
        )
        held += [(each.command_id, each.lease_id) for each in answer.leases]
    pushes = await parts.store.lease_push([f"lease_p{n}" for n in range(99)], 60, now)
    held += [(each.command.command_id, each.command.lease_id or "") for each in pushes.grants]
    for command_id, lease_id in held:
        await parts.leases.submit_response(command_id, GOOD, lease_id=lease_id)
    for each in commands:
        if each.state == "PENDING_UPLOAD":
            await parts.commands.cancel(each.command_id)
    ends: Answer = {}
    for each in commands:
        stored = await parts.store.get_with_bodies(each.command_id)
        assert stored is not None
        ends[each.command_id] = [stored.command.state, await _digest_of(parts, stored.params)]
    return ends


async def _digest_of(parts: ServerParts, params: Any) -> str | None:
    if isinstance(params, StoredInline):
        return calls.digest(params.data)
    if getattr(params, "size", None) is None:
        return None
    if await parts.blobs.size(params.path) is None:
        return None
    return calls.digest(b"".join([chunk async for chunk in parts.blobs.read(params.path)]))
