"""The target of a command: docs/protocol.md, Targets."""

from __future__ import annotations

import pytest

from arc_protocol.errors import (
    CommandTargetAmbiguous,
    CommandTargetIdInvalid,
    CommandTargetNotFound,
)
from arc_protocol.messages.base import IMPLICIT_TARGET, CommandTarget, State
from arc_server.ports.store import Store
from tests.support.store_samples import (
    DEPLOYMENT,
    NOW,
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
    worker,
)


async def targets_of(store: Store) -> list[CommandTarget]:
    found = await store.get_deployment(DEPLOYMENT)
    return [] if found is None else list(found.targets)


async def test_the_only_target_is_meant_when_none_is_named(store: Store) -> None:
    await store.put_deployment(deployment(worker("web")), NOW)

    assert (await create(store)).target == worker("web")


async def test_the_explicit_default_is_meant_when_there_are_several(store: Store) -> None:
    both = (daemon("one"), worker("two"))
    await store.put_deployment(deployment(*both, default_target_id="two"), NOW)

    assert (await create(store)).target == worker("two")
    assert (await create(store, target_resource_id="one")).target == daemon("one")


async def test_several_targets_without_a_default_are_ambiguous(store: Store) -> None:
    await store.put_deployment(deployment(daemon("one"), daemon("two")), NOW)

    with pytest.raises(CommandTargetAmbiguous):
        await create(store, command_id="cmd_a")

    assert await store.get("cmd_a") is None


@pytest.mark.parametrize("named", ["", "nobody"])
async def test_an_unknown_target_is_not_found(store: Store, named: str) -> None:
    await store.put_deployment(deployment(daemon("one")), NOW)

    with pytest.raises(CommandTargetNotFound):
        await create(store, target_resource_id=named, auto_register=False)


async def test_an_empty_target_is_never_registered(store: Store) -> None:
    with pytest.raises(CommandTargetNotFound):
        await create(store, target_resource_id="")

    assert await store.get_deployment(DEPLOYMENT) is None


@pytest.mark.parametrize("auto_register", [True, False])
async def test_a_target_id_with_a_colon_is_invalid(store: Store, auto_register: bool) -> None:
    await store.put_deployment(deployment(), NOW)

    with pytest.raises(CommandTargetIdInvalid):
        await create(store, target_resource_id="a:b", auto_register=auto_register)

    assert not await targets_of(store)


async def test_a_target_that_a_sender_names_first_is_registered_as_a_daemon(
    store: Store,
) -> None:
    command = await create(store, target_resource_id="vault")

    assert command.target == daemon("vault")
    assert await targets_of(store) == [daemon("vault")]


async def test_a_sender_registers_no_target_beside_another(store: Store) -> None:
    await lease(store, target=worker("web"))

    with pytest.raises(CommandTargetNotFound):
        await create(store, target_resource_id="wbe")

    assert await targets_of(store) == [worker("web")]
    assert (await create(store)).target == worker("web")


@pytest.mark.parametrize("reserved", ["operator", "operations-worker"])
async def test_a_reserved_target_is_for_creates_that_name_it(store: Store, reserved: str) -> None:
    await create(store, command_id="cmd_before")
    await lease(store, target=worker(reserved))
    await create(store, command_id="cmd_shorthand")
    await create(store, command_id="cmd_named", target_resource_id=reserved)

    assert granted_ids(await lease(store, 9, target=worker(reserved))) == ["cmd_named"]
    assert granted_ids(await lease(store, 9)) == ["cmd_before", "cmd_shorthand"]


@pytest.mark.parametrize("reserved", ["operator", "operations-worker"])
async def test_a_reserved_target_makes_nothing_ambiguous(store: Store, reserved: str) -> None:
    await lease(store, target=worker("web"))
    await create(store, target_resource_id=reserved)

    assert await targets_of(store) == [worker("web"), daemon(reserved)]
    assert (await create(store)).target == worker("web")


async def test_the_first_target_takes_over_beside_a_reserved_one(store: Store) -> None:
    await lease(store, target=daemon("operator"))
    held = await leased(store)
    await create(store, command_id="cmd_1", idempotency_key="k")

    granted = await lease(store, 9, target=worker("web"))

    assert granted.inherited
    assert granted_ids(granted) == ["cmd_1"]
    released = await store.release(held.lease_id or "", NOW, costs_attempt=True)
    assert released.target == worker("web")
    repeat = await store.create(new(idempotency_key="k", target_resource_id="web"))
    assert repeat.is_replay


async def test_a_reserved_target_has_keys_of_its_own(store: Store) -> None:
    await create(store, idempotency_key="k")

    other = await store.create(new(idempotency_key="k", target_resource_id="operator"))

    assert not other.is_replay


async def test_a_reserved_target_cannot_be_the_default(store: Store) -> None:
    with pytest.raises(CommandTargetIdInvalid):
        await store.put_deployment(
            deployment(daemon("one"), daemon("operator"), default_target_id="operator"), NOW
        )

    assert await store.get_deployment(DEPLOYMENT) is None


async def test_a_target_that_an_agent_names_first_is_registered(store: Store) -> None:
    await lease(store, target=worker("web"))

    assert await targets_of(store) == [worker("web")]


async def test_with_auto_registration_off_an_agent_registers_nothing(store: Store) -> None:
    granted = await lease(store, target=daemon("vault"), auto_register=False)

    assert not granted.grants
    assert await store.get_deployment(DEPLOYMENT) is None
    await create(store)
    await lease(store, target=daemon("vault"), auto_register=False)
    assert not await targets_of(store)


async def test_the_implicit_target_may_be_named_with_auto_registration_off(
    store: Store,
) -> None:
    await store.put_deployment(deployment(), NOW)

    command = await create(store, target_resource_id="default", auto_register=False)
    granted = await lease(store, target=IMPLICIT_TARGET, auto_register=False)

    assert command.target == IMPLICIT_TARGET
    assert granted_ids(granted) == [command.command_id]
    assert not await targets_of(store)


async def test_the_implicit_target_with_another_type_is_a_mismatch(store: Store) -> None:
    await store.put_deployment(deployment(), NOW)
    await create(store)

    granted = await lease(store, target=worker("default"), auto_register=False)

    assert granted.type_mismatch
    assert not granted.grants


async def test_an_agent_that_names_the_implicit_target_gets_its_commands(
    store: Store,
) -> None:
    command = await create(store)

    granted = await lease(store, target=IMPLICIT_TARGET)

    assert granted_ids(granted) == [command.command_id]
    assert not granted.inherited
    assert await targets_of(store) == [IMPLICIT_TARGET]


async def test_the_first_target_takes_over_what_waits_in_its_order(store: Store) -> None:
    await create(store, command_id="cmd_upload", params=UPLOAD)
    await create(store, command_id="cmd_1")
    await create(store, command_id="cmd_2")

    granted = await lease(store, 5, target=worker("web"))

    assert granted.inherited
    assert granted_ids(granted) == ["cmd_1", "cmd_2"]
    assert granted.grants[0].command.target == worker("web")
    assert (await read(store, "cmd_upload")).target == worker("web")
    assert (await create(store)).target == worker("web")


async def test_only_the_first_target_takes_over(store: Store) -> None:
    await lease(store, target=daemon("one"))
    await create(store, command_id="cmd_a", target_resource_id="one")

    granted = await lease(store, 5, target=daemon("two"))

    assert not granted.inherited
    assert not granted.grants


async def test_a_target_that_a_sender_names_takes_over_too(store: Store) -> None:
    await create(store, command_id="cmd_1")

    await create(store, command_id="cmd_2", target_resource_id="vault")

    granted = await lease(store, 5, target=daemon("vault"))
    assert granted_ids(granted) == ["cmd_1", "cmd_2"]
    assert not granted.inherited


async def test_a_configured_target_takes_over_the_default_one_first(store: Store) -> None:
    await create(store, command_id="cmd_1")

    await store.put_deployment(
        deployment(daemon("one"), daemon("two"), default_target_id="two"), NOW
    )

    assert (await read(store, "cmd_1")).target == daemon("two")


async def test_what_is_terminal_or_held_is_not_taken_over(store: Store) -> None:
    cancelled = await create(store)
    await store.cancel(cancelled.command_id, NOW)
    held = await leased(store)

    await lease(store, target=daemon("vault"))

    assert (await read(store, cancelled.command_id)).target == IMPLICIT_TARGET
    assert (await read(store, held.command_id)).target == IMPLICIT_TARGET


async def test_a_held_command_goes_to_the_heir_when_it_is_handed_back(store: Store) -> None:
    released, lapsed = await leased(store), await leased(store)
    await lease(store, target=worker("web"))

    await store.release(released.lease_id or "", after(1), costs_attempt=True)
    await store.requeue_lapsed(after(60), 10)

    granted = await lease(store, 5, at=after(61), target=worker("web"))
    assert granted_ids(granted) == [released.command_id, lapsed.command_id]
    assert granted.grants[0].command.target == worker("web")


async def test_a_redelivered_command_stays_with_its_target(store: Store) -> None:
    await store.put_deployment(deployment(daemon("one"), daemon("two")), NOW)
    command = await create(store, target_resource_id="two")
    [grant] = (await lease(store, target=daemon("two"))).grants
    await store.put_deployment(deployment(worker("two")), NOW)

    released = await store.release(grant.command.lease_id or "", NOW, costs_attempt=True)

    assert released.target == worker("two")
    assert granted_ids(await lease(store, target=worker("two"))) == [command.command_id]


async def test_a_target_gets_its_own_commands_only(store: Store) -> None:
    await store.put_deployment(deployment(daemon("one"), daemon("two")), NOW)
    await create(store, command_id="cmd_one", target_resource_id="one")
    await create(store, command_id="cmd_two", target_resource_id="two")
    await create(store, command_id="cmd_far", deployment_id="dep-2", target_resource_id="one")

    assert granted_ids(await lease(store, 9, target=daemon("one"))) == ["cmd_one"]
    assert granted_ids(await lease(store, 9, target=daemon("two"))) == ["cmd_two"]


async def test_another_resource_type_is_no_match(store: Store) -> None:
    await create(store, target_resource_id="one")

    granted = await lease(store, target=worker("one"))

    assert granted.type_mismatch
    assert not granted.grants
    assert await targets_of(store) == [daemon("one")]


async def test_without_target_the_default_targets_commands_are_leased(store: Store) -> None:
    await create(store, command_id="cmd_one", target_resource_id="one")
    assert granted_ids(await lease(store)) == ["cmd_one"]

    await store.put_deployment(deployment(daemon("two")), NOW)
    await create(store, command_id="cmd_two", target_resource_id="two")
    assert not (await lease(store)).grants

    await store.put_deployment(deployment(default_target_id="two"), NOW)
    assert granted_ids(await lease(store)) == ["cmd_two"]


async def test_an_agents_target_id_with_a_colon_gets_nothing_and_is_not_registered(
    store: Store,
) -> None:
    granted = await lease(store, target=daemon("a:b"))

    assert not granted.grants
    assert not granted.type_mismatch
    assert not await targets_of(store)


async def test_targets_are_added_and_never_removed(store: Store) -> None:
    await store.put_deployment(deployment(daemon("one")), NOW)
    await store.put_deployment(deployment(daemon("two")), NOW)

    assert await targets_of(store) == [daemon("one"), daemon("two")]


async def test_a_default_target_must_be_one_of_the_deployments(store: Store) -> None:
    with pytest.raises(CommandTargetNotFound):
        await store.put_deployment(deployment(daemon("one"), default_target_id="two"), NOW)

    assert await store.get_deployment(DEPLOYMENT) is None


@pytest.mark.parametrize("resource_id", ["a:b", ""])
async def test_a_configured_target_needs_a_good_id(store: Store, resource_id: str) -> None:
    with pytest.raises(CommandTargetIdInvalid):
        await store.put_deployment(deployment(daemon("one"), daemon(resource_id)), NOW)

    assert await store.get_deployment(DEPLOYMENT) is None


async def test_waiting_commands_follow_their_target_to_its_new_type(store: Store) -> None:
    waiting = await create(store, target_resource_id="web")

    await store.put_deployment(deployment(worker("web")), NOW)

    assert (await read(store, waiting.command_id)).target == worker("web")
    assert (await lease(store, target=worker("web"))).grants


async def test_waiting_commands_follow_from_leased_to_pushed_and_back(store: Store) -> None:
    await store.put_deployment(deployment(), NOW)
    command = await create(store)

    await store.put_deployment(pushed(), after(1))
    assert (await read(store, command.command_id)).is_push
    assert not (await lease(store, at=after(1))).grants
    assert await store.next_push_at() == after(1)

    await store.put_deployment(deployment(), after(2))
    assert await store.next_push_at() is None
    granted = await lease(store, at=after(2))
    assert granted_ids(granted) == [command.command_id]
    assert granted.grants[0].command.state is State.DISPATCHED
