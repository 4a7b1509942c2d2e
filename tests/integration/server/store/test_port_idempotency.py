"""Idempotency keys: one command for each, through every failure in between."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from arc_protocol.errors import CommandTargetAmbiguous, IdempotencyKeyReused
from arc_protocol.messages.base import State
from arc_server.ports.store import Store
from tests.support.store_samples import (
    NOW,
    RESULT,
    UPLOAD,
    after,
    create,
    daemon,
    deployment,
    lease,
    leased,
    new,
)


async def test_a_repeat_answers_the_command_in_its_current_state(store: Store) -> None:
    held = await leased(store, idempotency_key="k", command_id="cmd_a")
    await store.complete("cmd_a", held.lease_id, RESULT, after(1))

    repeat = await store.create(new(idempotency_key="k"))

    assert repeat.is_replay
    assert repeat.command.command_id == "cmd_a"
    assert repeat.command.state is State.SUCCEEDED


async def test_a_repeat_past_the_deadline_is_answered_all_the_same(store: Store) -> None:
    await create(store, idempotency_key="k", command_id="cmd_a", deadline=after(10))

    repeat = await store.create(
        new(idempotency_key="k", deadline=after(10), created_at=after(3600))
    )

    assert repeat.is_replay
    assert repeat.command.state is State.PENDING


async def test_a_repeat_that_still_waits_for_its_upload_names_the_path(store: Store) -> None:
    await create(store, idempotency_key="k", params=UPLOAD)

    repeat = await store.create(new(idempotency_key="k", params=UPLOAD))

    assert repeat.is_replay
    assert repeat.params == UPLOAD


async def test_other_params_under_the_same_key_are_refused(store: Store) -> None:
    await create(store, idempotency_key="k", command_id="cmd_a")

    with pytest.raises(IdempotencyKeyReused):
        await create(store, idempotency_key="k", command_id="cmd_b", params_digest=b"two")

    assert await store.get("cmd_b") is None


@pytest.mark.parametrize(
    "change",
    [
        {"deployment_id": "dep-2"},
        {"command": "reports.delete"},
        {"target_resource_id": "other"},
        {"idempotency_key": "K"},
        {"idempotency_key": ""},
        {"idempotency_key": None},
    ],
    ids=str,
)
async def test_a_key_counts_for_one_deployment_target_and_command(
    store: Store, change: dict[str, str]
) -> None:
    await store.put_deployment(
        deployment(daemon("one"), daemon("other"), default_target_id="one"), NOW
    )
    await create(store, idempotency_key="k")

    other = await store.create(new(**{"idempotency_key": "k", **change}))

    assert not other.is_replay


async def test_the_empty_key_is_a_key(store: Store) -> None:
    await create(store, idempotency_key="")

    assert (await store.create(new(idempotency_key=""))).is_replay


async def test_fifty_concurrent_creates_with_one_key_make_one_command(store: Store) -> None:
    created = await asyncio.gather(*(store.create(new(idempotency_key="k")) for _ in range(50)))

    assert len({each.command.command_id for each in created}) == 1
    assert [each.is_replay for each in created].count(False) == 1
    assert len((await lease(store, 100)).grants) == 1


async def test_the_keys_of_the_implicit_target_go_over_to_the_first_one(
    store: Store,
) -> None:
    held = await leased(store, idempotency_key="done", command_id="cmd_done")
    await store.complete("cmd_done", held.lease_id, RESULT, NOW)
    await create(store, idempotency_key="waiting", command_id="cmd_waiting")

    await lease(store, 0, target=daemon("vault"))

    for named in (None, "vault"):
        for key in ("done", "waiting"):
            repeat = await store.create(new(idempotency_key=key, target_resource_id=named))
            assert repeat.is_replay
            assert repeat.command.command_id == f"cmd_{key}"


async def test_a_create_that_makes_the_first_target_finds_the_keys_too(store: Store) -> None:
    await create(store, idempotency_key="k", command_id="cmd_a")

    repeat = await store.create(new(idempotency_key="k", target_resource_id="vault"))

    assert repeat.is_replay
    assert repeat.command.command_id == "cmd_a"


async def test_a_refused_repeat_registers_nothing(store: Store) -> None:
    await create(store, idempotency_key="k")

    with pytest.raises(IdempotencyKeyReused):
        await create(store, idempotency_key="k", target_resource_id="vault", params_digest=b"two")

    registered = await store.get_deployment("dep-1")
    assert registered is not None
    assert not registered.targets


async def test_the_keys_of_a_later_target_called_default_are_its_own(store: Store) -> None:
    await create(store, idempotency_key="k", command_id="cmd_a")
    await store.put_deployment(deployment(daemon("vault"), daemon("default")), NOW)

    other = await store.create(new(idempotency_key="k", target_resource_id="default"))

    assert not other.is_replay


async def test_a_repeat_without_target_is_answered_when_the_target_is_no_longer_clear(
    store: Store,
) -> None:
    await create(store, idempotency_key="k", command_id="cmd_a")
    await store.put_deployment(deployment(daemon("one"), daemon("two")), NOW)

    repeat = await store.create(new(idempotency_key="k"))

    assert repeat.is_replay
    assert repeat.command.command_id == "cmd_a"
    with pytest.raises(CommandTargetAmbiguous):
        await store.create(new(idempotency_key="another"))


async def test_a_key_stays_for_as_long_as_its_command_does(store: Store) -> None:
    await create(store, idempotency_key="k")

    forgotten = await store.forget_idempotency_keys(NOW + timedelta(days=400), 1000)

    assert forgotten == 0
    assert (await store.create(new(idempotency_key="k"))).is_replay
