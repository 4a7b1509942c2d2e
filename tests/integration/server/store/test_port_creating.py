"""Creating commands: what is stored, and what is refused."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from arc_protocol.errors import (
    CommandNotFound,
    DeploymentNotFound,
    InvalidCommand,
    InvalidStateTransition,
    StoreUnavailable,
)
from arc_protocol.messages.base import IMPLICIT_TARGET, State
from arc_server.ports.records import AwaitedBlob, PushLease, StoredBlob, StoredInline
from arc_server.ports.store import Store
from tests.support.store_samples import (
    DEPLOYMENT,
    NOW,
    PARAMS,
    UPLOAD,
    after,
    create,
    daemon,
    deployment,
    granted_ids,
    lease,
    leased,
    new,
    pushed,
    read,
)


async def test_a_new_command_is_pending_in_its_first_attempt(store: Store) -> None:
    created = await store.create(new(command_id="cmd_a", deadline=after(300), max_attempts=4))

    command = created.command
    assert not created.is_replay
    assert created.params == PARAMS
    assert command.command_id == "cmd_a"
    assert command.state is State.PENDING
    assert (command.attempt, command.max_attempts) == (1, 4)
    assert command.target == IMPLICIT_TARGET
    assert command.deadline == after(300)
    assert command.lease_id is None
    assert await read(store, "cmd_a") == command


async def test_a_pushed_command_is_dispatched_by_its_create(store: Store) -> None:
    await store.put_deployment(pushed(), NOW)
    lease_of_push = PushLease("lease_p", after(15))

    command = await create(store, command_id="cmd_a", push_lease=lease_of_push)
    awaited = await create(store, params=UPLOAD, push_lease=lease_of_push)

    assert command == await read(store, "cmd_a")
    assert command.state is State.DISPATCHED
    assert (command.lease_id, command.lease_attempt) == ("lease_p", 1)
    assert (command.dispatched_at, command.lease_expires_at) == (NOW, after(15))
    assert awaited.state is State.PENDING_UPLOAD
    assert not (await store.lease_push(["lease_q"], 60, NOW)).grants
    await store.requeue_lapsed(after(15), 10)
    [grant] = (await store.lease_push(["lease_q"], 60, after(15))).grants
    assert (grant.command.lease_id, grant.command.attempt) == ("lease_p", 2)


async def test_a_pushed_command_is_dispatched_by_its_upload(store: Store) -> None:
    await store.put_deployment(pushed(), NOW)
    await create(store, command_id="cmd_a", params=UPLOAD, signature="c2lnbmVk")
    arrived = StoredBlob(path=UPLOAD.path, size=5_000_000)

    lease_of_push = PushLease("lease_p", after(15))
    command = await store.mark_uploaded("cmd_a", arrived, NOW, lease_of_push)

    stored = await store.get_with_bodies("cmd_a")
    assert stored is not None
    assert command == stored.command
    assert (stored.params, stored.signature) == (arrived, "c2lnbmVk")
    assert command.state is State.DISPATCHED
    assert (command.lease_id, command.lease_attempt) == ("lease_p", 1)
    assert (command.dispatched_at, command.lease_expires_at) == (NOW, after(15))
    assert not (await store.lease_push(["lease_q"], 60, NOW)).grants
    await store.requeue_lapsed(after(15), 10)
    [grant] = (await store.lease_push(["lease_q"], 60, after(15))).grants
    assert (grant.command.lease_id, grant.command.attempt) == ("lease_p", 2)
    assert (grant.params, grant.signature) == (arrived, "c2lnbmVk")


async def test_a_push_lease_is_for_deployments_that_are_pushed_to(store: Store) -> None:
    lease_of_push = PushLease("lease_p", after(15))
    command = await create(store, push_lease=lease_of_push)
    await create(store, command_id="cmd_a", params=UPLOAD)
    uploaded = await store.mark_uploaded("cmd_a", PARAMS, NOW, lease_of_push)

    assert command.state is uploaded.state is State.PENDING
    assert command.lease_id is uploaded.lease_id is None
    assert granted_ids(await lease(store)) == [command.command_id]


async def test_everything_stored_reads_back_as_it_was(store: Store) -> None:
    deadline = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    name = "naïve \N{SNOWMAN} '; DROP TABLE commands; --"

    await create(store, command_id="cmd_a", command=name, deadline=deadline)

    found = await store.get_with_bodies("cmd_a")
    assert found is not None
    assert found.command.command == name
    assert found.command.deadline == deadline
    assert found.command.created_at == NOW
    assert found.command.created_at.tzinfo is UTC
    assert found.params == PARAMS
    assert found.response is None


@pytest.mark.parametrize(
    "params",
    [
        StoredInline(data=b""),
        StoredInline(data=bytes(range(256)) * 600),
        StoredBlob(path="arc/commands/é/params", size=0),
        StoredBlob(path="p", size=2**62),
        AwaitedBlob(path="p"),
        AwaitedBlob(path="p", size=7),
    ],
    ids=["empty", "large", "empty blob", "huge blob", "awaited", "announced"],
)
async def test_params_of_every_form_read_back(
    store: Store, params: StoredInline | StoredBlob | AwaitedBlob
) -> None:
    await create(store, command_id="cmd_a", params=params)

    found = await store.get_with_bodies("cmd_a")

    assert found is not None
    assert found.params == params


async def test_params_that_are_awaited_make_the_command_wait(store: Store) -> None:
    command = await create(store, params=UPLOAD)

    assert command.state is State.PENDING_UPLOAD
    assert not (await lease(store)).grants


async def test_an_upload_makes_it_ready_behind_the_rest(store: Store) -> None:
    await create(store, command_id="cmd_early", params=UPLOAD)
    await create(store, command_id="cmd_later", params=UPLOAD)
    await create(store, command_id="cmd_ready")
    arrived = StoredBlob(path=UPLOAD.path, size=5_000_000)

    await store.mark_uploaded("cmd_later", arrived, after(1))
    command = await store.mark_uploaded("cmd_early", arrived, after(2))
    await create(store, command_id="cmd_last")
    granted = await lease(store, 9, at=after(3))

    assert command.state is State.PENDING
    assert granted_ids(granted) == ["cmd_ready", "cmd_later", "cmd_early", "cmd_last"]
    assert granted.grants[2].params == arrived


async def test_an_upload_is_refused_in_every_other_state(store: Store) -> None:
    held = await leased(store)
    await create(store, command_id="cmd_pending")

    with pytest.raises(CommandNotFound):
        await store.mark_uploaded("cmd_none", PARAMS, NOW)
    with pytest.raises(InvalidStateTransition):
        await store.mark_uploaded("cmd_pending", PARAMS, NOW)
    with pytest.raises(InvalidStateTransition):
        await store.mark_uploaded(held.command_id, PARAMS, NOW)
    assert await read(store, held.command_id) == held


async def test_an_upload_past_the_deadline_is_refused_and_expires_the_command(
    store: Store,
) -> None:
    await create(store, command_id="cmd_a", params=UPLOAD, deadline=after(10))

    with pytest.raises(InvalidStateTransition):
        await store.mark_uploaded("cmd_a", PARAMS, after(10))

    command = await read(store, "cmd_a")
    assert command.state is State.EXPIRED
    assert command.completed_at == after(10)


async def test_a_deadline_that_has_passed_is_refused(store: Store) -> None:
    with pytest.raises(InvalidCommand, match="deadline"):
        await create(store, command_id="cmd_a", deadline=NOW)

    assert await store.get("cmd_a") is None
    assert await store.get_deployment(DEPLOYMENT) is None


async def test_an_unknown_deployment_is_registered_unless_that_is_off(store: Store) -> None:
    with pytest.raises(DeploymentNotFound):
        await create(store, auto_register=False)
    assert await store.get_deployment(DEPLOYMENT) is None

    await create(store)

    registered = await store.get_deployment(DEPLOYMENT)
    assert registered is not None
    assert not registered.targets
    await create(store, auto_register=False)


async def test_commands_of_a_push_deployment_are_pushed(store: Store) -> None:
    await store.put_deployment(pushed(), NOW)

    command = await create(store)

    assert command.is_push
    assert not (await lease(store)).grants


async def test_an_id_that_is_taken_is_refused_and_the_first_stands(store: Store) -> None:
    first = await create(store, command_id="cmd_a")

    with pytest.raises(StoreUnavailable):
        await create(store, command_id="cmd_a", deployment_id="dep-2", command="other")

    assert await read(store, "cmd_a") == first
    assert await store.get_deployment("dep-2") is None


async def test_concurrent_creates_are_leased_in_the_order_of_their_answers(
    store: Store,
) -> None:
    await store.put_deployment(deployment(daemon("vault")), NOW)

    await asyncio.gather(*(create(store, command_id=f"cmd_{n:03}") for n in range(100)))

    granted = await lease(store, 1000)
    assert granted_ids(granted) == [f"cmd_{n:03}" for n in range(100)]
