"""The calls of which operations.py is made: by a sender, by a lease holder and by the clock."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta
from typing import Any

from arc_protocol.errors import ArcError
from arc_protocol.messages.agents import AgentRegistration, HandlerInfo
from arc_protocol.messages.base import CommandTarget, ResourceType
from arc_protocol.messages.bodies import InlineBody, StorageBody
from arc_protocol.messages.commands import CreateCommandRequest
from arc_protocol.messages.leases import (
    LeaseRequest,
    RenewRequest,
    RespondRequest,
    SubmittedResponse,
)
from arc_server.ports.records import (
    BearerToken,
    Deployment,
    NewCommand,
    StoredError,
    StoredInline,
    StoredSuccess,
    TokenSecret,
)
from arc_server.service.sweeper import Sweeper, SweepLimits
from tests.chaos.server_parts import BASE_URL, INLINE_BYTES, ServerParts
from tests.support.clocks import START

Notes = dict[str, Any]
"""What `prepare` leaves for `act`; under `commands`, what must be there for ever: id → digest."""
Answer = dict[str, Any]

DEPLOYMENT = "site-1"
SMALL = b"small"
LARGE = b"large " * INLINE_BYTES


async def nothing(_house: ServerParts) -> Notes:
    return {}


async def told(doing: Awaitable[Any]) -> Any:
    """An answer, or the code of the refusal."""
    try:
        return await doing
    except ArcError as error:
        return {"refused": error.code}


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data


def inline(data: bytes) -> InlineBody:
    return InlineBody.of(data)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def request(data: bytes | None = SMALL, **fields: Any) -> CreateCommandRequest:
    """A create; without data its params are to be uploaded."""
    return CreateCommandRequest(
        deployment_id=DEPLOYMENT,
        command="report",
        params=StorageBody(size=fields.pop("size", None)) if data is None else inline(data),
        **fields,
    )


async def create(parts: ServerParts, **fields: Any) -> Answer:
    created = await told(parts.commands.create(request(**fields), base_url=BASE_URL))
    if isinstance(created, dict):
        return created
    return {"id": created.command_id, "state": created.state, "next": created.next}


async def created(parts: ServerParts, count: int = 1, data: bytes = SMALL, **fields: Any) -> Notes:
    """Commands that are there before."""
    ids = [(await create(parts, data=data, **fields))["id"] for _ in range(count)]
    return {"id": ids[0], "ids": ids, "commands": dict.fromkeys(ids, digest(data))}


async def lease(parts: ServerParts, count: int = 1, seconds: int = 60) -> list[Answer]:
    answer = await parts.leases.lease(
        LeaseRequest(
            deployment_id=DEPLOYMENT, max_leases=count, lease_seconds=seconds, agent_id="agent-1"
        ),
        base_url=BASE_URL,
    )
    return [
        {"lease": each.lease_id, "id": each.command_id, "attempt": each.attempt}
        for each in answer.leases
    ]


async def leased(parts: ServerParts, count: int = 1, seconds: int = 60, **fields: Any) -> Notes:
    """Commands that are held before."""
    notes = await created(parts, count, **fields)
    leases = await lease(parts, count, seconds)
    assert [each["id"] for each in leases] == notes["ids"]
    return {**notes, "lease": leases[0]["lease"], "leases": [each["lease"] for each in leases]}


async def respond(parts: ServerParts, notes: Notes, response: Any) -> Answer:
    answer = await told(
        parts.leases.submit_response(notes["id"], response, lease_id=notes["lease"])
    )
    return answer or {"taken": True}


async def respond_to_all(parts: ServerParts, notes: Notes, response: Any) -> Answer:
    submitted = [
        SubmittedResponse(lease_id=lease, command_id=command_id, response=response)
        for command_id, lease in zip(notes["ids"], notes["leases"], strict=True)
    ]
    unknown = SubmittedResponse(lease_id="lease_x", command_id="cmd_x", response=response)
    answer = await parts.leases.submit_responses(RespondRequest(responses=[*submitted, unknown]))
    return {"refused": [(each.lease_id, each.error.code) for each in answer.refused]}


async def release(parts: ServerParts, notes: Notes, costs_attempt: bool = True) -> Answer:
    answer = await told(parts.leases.release(notes["lease"], costs_attempt=costs_attempt))
    return answer or {"released": True}


async def cancel(parts: ServerParts, notes: Notes) -> Answer:
    status = await parts.commands.cancel(notes["id"])
    return {"state": status.state, "asked": status.cancel_requested}


async def awaiting(parts: ServerParts, data: bytes, *, is_uploaded: bool = True) -> Notes:
    """A command whose params are to be uploaded, or have just been."""
    made = await parts.commands.create(request(None, size=len(data)), base_url=BASE_URL)
    assert made.storage_upload is not None
    notes = {
        "id": made.command_id,
        "path": made.storage_upload.put_request.path,
        "size": len(data),
        "commands": {made.command_id: None},
    }
    if is_uploaded:
        await parts.blobs.write(notes["path"], chunks(data), len(data))
        notes["commands"] = {made.command_id: digest(data)}
    return notes


async def upload_complete(parts: ServerParts, notes: Notes) -> Answer:
    answer = await told(parts.commands.upload_complete(notes["id"], notes["size"]))
    return answer if isinstance(answer, dict) else {"state": answer.state}


async def replayed(parts: ServerParts) -> Notes:
    return await created(parts, idempotency_key="once")


async def awaiting_response(parts: ServerParts) -> Notes:
    """A holder has uploaded its response and is about to say so."""
    notes = await leased(parts)
    stored = await parts.store.get(notes["id"])
    assert stored is not None
    path = f"arc/commands/{notes['id']}/attempts/1/{notes['lease']}/response"
    await parts.blobs.write(path, chunks(LARGE), len(LARGE))
    return notes


async def renew(parts: ServerParts, notes: Notes) -> Answer:
    answer = await parts.leases.renew(
        RenewRequest(lease_ids=[*notes["leases"], "lease_unknown"], lease_seconds=90)
    )
    return {"renewed": [each.lease_id for each in answer.renewed], "lost": answer.lost}


async def tick(parts: ServerParts) -> Answer:
    """A whole sweep, as the server does it."""
    limits = SweepLimits(outage_seconds=10_000)
    sweeper = Sweeper(
        store=parts.store,
        announcements=parts.announcements,
        agents=parts.agents,
        clock=parts.clock,
        limits=limits,
    )
    await sweeper.tick()
    return {"swept": True}


async def for_the_sweep(parts: ServerParts) -> Notes:
    """Something lapsed, something overdue in every state, and a sign of life."""
    await parts.store.sign_of_life(parts.clock.now())
    notes = await leased(parts, 2, seconds=5)
    late = await leased(parts, 1, deadline=START + timedelta(seconds=5))
    waiting = await created(parts, 1, deadline=START + timedelta(seconds=5))
    return {**notes, "commands": notes["commands"] | late["commands"] | waiting["commands"]}


async def pushed(parts: ServerParts) -> Notes:
    """A command that is pushed."""
    await configure(parts)
    return await created(parts)


async def configure(parts: ServerParts) -> None:
    await parts.store.put_deployment(
        Deployment(
            deployment_id=DEPLOYMENT,
            targets=[CommandTarget(resource_id="worker-1", resource_type=ResourceType.WORKER)],
            push_url="http://worker.test/",
            push_token="secret",
        ),
        parts.clock.now(),
    )


async def lease_push(parts: ServerParts) -> Answer:
    granted = await parts.store.lease_push(["lease_a", "lease_b"], 60, parts.clock.now())
    return {"pushed": [grant.command.command_id for grant in granted.grants]}


async def several(parts: ServerParts, notes: Notes) -> Answer:
    """Operations that meet in the queue: one commit for all of them, and one refusal."""
    now = parts.clock.now()

    def new(name: str) -> NewCommand:
        return NewCommand(
            command_id=f"cmd_{name}",
            deployment_id=DEPLOYMENT,
            target_resource_id=None,
            command="report",
            params=StoredInline(data=SMALL),
            params_digest=b"digest",
            max_attempts=3,
            created_at=now,
            idempotency_key=name,
        )

    first, second = notes["leases"]
    store = parts.store
    answers = await asyncio.gather(
        store.create(new("one")),
        store.create(new("two")),
        store.create(new("one")),
        store.complete(notes["ids"][0], first, StoredSuccess(body=StoredInline(data=b"r")), now),
        told(store.complete(notes["ids"][1], "lease_x", StoredError(code="E", message=""), now)),
        told(store.release(second, now, costs_attempt=True)),
    )
    assert answers[4] == {"refused": "LEASE_LOST"}
    return {"ids": [answer.command.command_id for answer in answers[:3]]}


async def register(parts: ServerParts) -> Answer:
    await parts.agents.register(
        "agent-1",
        AgentRegistration(
            deployment_id=DEPLOYMENT,
            version="1",
            hostname="host",
            handlers=[HandlerInfo(name="report")],
        ),
    )
    return {"registered": True}


async def put_token(parts: ServerParts) -> Notes:
    await parts.store.put_token(
        BearerToken(token_id="t1", scope="admin", created_at=START),
        TokenSecret(token_hash=b"hash", token_id="t1", created_at=START),
    )
    return {}


async def revoke(parts: ServerParts) -> Answer:
    return {"revoked": await parts.store.revoke_token("t1", parts.clock.now())}


async def write_blob(parts: ServerParts, notes: Notes, data: bytes) -> Answer:
    await parts.blobs.write(notes["path"], chunks(data), len(data))
    return {"size": await parts.blobs.size(notes["path"])}


async def lease_ids(parts: ServerParts, count: int) -> Answer:
    return {"leases": [[each["id"], each["attempt"]] for each in await lease(parts, count)]}


async def lease_as(parts: ServerParts, target_id: str) -> Answer:
    answer = await parts.leases.lease(
        LeaseRequest(
            deployment_id=DEPLOYMENT,
            target=CommandTarget(resource_id=target_id, resource_type=ResourceType.DAEMON),
        ),
        base_url=BASE_URL,
    )
    return {"leases": [[each.command_id, each.attempt] for each in answer.leases]}


async def lapsed(parts: ServerParts) -> Notes:
    """Return a command whose lease has lapsed and that no agent has leased since."""
    notes = await leased(parts, seconds=5)
    await parts.store.requeue_lapsed(START + timedelta(seconds=6), 10)
    return notes


async def count_of(sweep: Awaitable[Any]) -> Answer:
    return {"changed": len(await sweep)}


async def configured(parts: ServerParts) -> Answer:
    await configure(parts)
    return {"configured": True}
