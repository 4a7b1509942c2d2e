"""A signature reaches the agent that runs the command as it left the sender."""

from __future__ import annotations

from arc_server.ports.records import Granted, StoredInline
from arc_server.ports.store import Store
from tests.support.store_samples import (
    DEPLOYMENT,
    NOW,
    PARAMS,
    UPLOAD,
    after,
    create,
    granted_ids,
    lease,
    new,
    pushed,
)

SIGNATURE = "eyJh.eyJj.c2ln"


def signatures(granted: Granted) -> list[str | None]:
    return [grant.signature for grant in granted.grants]


async def test_a_lease_carries_the_signature_of_the_create(store: Store) -> None:
    await create(store, command_id="cmd_a", signature=SIGNATURE)
    await create(store, command_id="cmd_b")

    granted = await lease(store, 2)

    assert granted_ids(granted) == ["cmd_a", "cmd_b"]
    assert signatures(granted) == [SIGNATURE, None]


async def test_a_redelivered_command_still_has_its_signature(store: Store) -> None:
    await create(store, command_id="cmd_a", signature=SIGNATURE)
    first = await lease(store)
    await store.requeue_lapsed(after(61), 10)

    again = await lease(store, at=after(62))

    assert granted_ids(again) == granted_ids(first)
    assert signatures(again) == [SIGNATURE]


async def test_an_upload_leaves_the_signature(store: Store) -> None:
    await create(store, command_id="cmd_a", params=UPLOAD, signature=SIGNATURE)
    await store.mark_uploaded("cmd_a", StoredInline(data=b"{}"), NOW)

    assert signatures(await lease(store)) == [SIGNATURE]


async def test_params_that_an_operator_replaced_keep_the_signature(store: Store) -> None:
    await create(store, command_id="cmd_a", signature=SIGNATURE)
    await store.write_payload("cmd_a", StoredInline(data=b"other"), None)

    assert signatures(await lease(store)) == [SIGNATURE]


async def test_of_a_repeat_the_first_signature_counts(store: Store) -> None:
    await store.create(new(command_id="cmd_a", idempotency_key="k", signature=SIGNATURE))
    repeat = await store.create(new(command_id="cmd_b", idempotency_key="k", signature="x.y.z"))

    assert repeat.is_replay
    assert repeat.params == PARAMS
    assert signatures(await lease(store)) == [SIGNATURE]


async def test_a_push_carries_the_signature(store: Store) -> None:
    await store.put_deployment(pushed(), NOW)
    await create(store, command_id="cmd_a", deployment_id=DEPLOYMENT, signature=SIGNATURE)

    granted = await store.lease_push(["lease_p"], 60, NOW)

    assert signatures(granted) == [SIGNATURE]
