"""Leasing, renewing and handing back."""

from __future__ import annotations

import asyncio

import pytest

from arc_protocol.errors import Forbidden, LeaseLost, LeaseNotFound
from arc_protocol.messages.base import State
from arc_server.ports.records import PushCircuit, StoredError, StoredInline
from arc_server.ports.store import Store
from arc_server.store.operations.lease import READ_AT_ONCE
from tests.support.reaches import only
from tests.support.store_samples import (
    DEPLOYMENT,
    NOW,
    PARAMS,
    RESULT,
    UPLOAD,
    after,
    create,
    daemon,
    deployment,
    granted_ids,
    ids,
    lease,
    leased,
    pushed,
    query,
    read,
    response_of,
)


async def test_a_lease_makes_its_command_dispatched(store: Store) -> None:
    await create(store, command_id="cmd_a")
    asked = query(lease_seconds=45.5, holder="agent-7")

    granted = await store.lease(asked, after(2))

    [grant] = granted.grants
    command = grant.command
    assert grant.params == PARAMS
    assert command.state is State.DISPATCHED
    assert command.lease_id == asked.lease_ids[0]
    assert command.lease_expires_at == after(47.5)
    assert command.lease_holder == "agent-7"
    assert command.lease_attempt == command.attempt == 1
    assert command.dispatched_at == after(2)
    assert await read(store, "cmd_a") == command


async def test_the_first_ready_are_leased_first_and_never_more_than_asked_for(
    store: Store,
) -> None:
    commands = [(await create(store)).command_id for _ in range(5)]

    assert granted_ids(await lease(store, 3)) == commands[:3]
    assert granted_ids(await lease(store, 3)) == commands[3:]
    assert not (await lease(store, 3)).grants


async def test_so_many_bytes_of_params_are_leased_together_but_always_one_command(
    store: Store,
) -> None:
    params = StoredInline(data=b"x" * 1000)
    commands = [(await create(store, params=params)).command_id for _ in range(5)]

    assert granted_ids(await store.lease(query(5, max_bytes=2999), NOW)) == commands[:2]
    assert granted_ids(await store.lease(query(5, max_bytes=1), NOW)) == commands[2:3]
    assert granted_ids(await store.lease(query(5), NOW)) == commands[3:]


async def test_more_commands_are_leased_than_are_read_at_once(store: Store) -> None:
    commands = [(await create(store)).command_id for _ in range(READ_AT_ONCE + 10)]

    assert granted_ids(await lease(store, len(commands))) == commands


async def test_nothing_is_handed_out_twice_to_concurrent_agents(store: Store) -> None:
    commands = {(await create(store)).command_id for _ in range(60)}

    answers = await asyncio.gather(*(lease(store, 3) for _ in range(40)))

    handed_out = [command_id for granted in answers for command_id in granted_ids(granted)]
    assert len(handed_out) == 60
    assert set(handed_out) == commands


async def test_overdue_commands_end_on_the_way_and_do_not_count(store: Store) -> None:
    await create(store, command_id="cmd_late", deadline=after(10))
    await create(store, command_id="cmd_good", deadline=after(11))

    granted = await lease(store, 1, at=after(10))

    assert granted_ids(granted) == ["cmd_good"]
    assert ids(granted.ended) == ["cmd_late"]
    ended = await read(store, "cmd_late")
    assert ended == granted.ended[0]
    assert ended.state is State.EXPIRED
    assert ended.completed_at == after(10)


async def test_what_is_ready_is_found_behind_any_number_of_overdue_ones(
    store: Store,
) -> None:
    await asyncio.gather(*(create(store, deadline=after(10)) for _ in range(1_000)))
    await create(store, command_id="cmd_good")

    granted = await lease(store, 2, at=after(10))

    assert granted_ids(granted) == ["cmd_good"]
    assert len(granted.ended) == 1_000


async def test_a_redelivered_command_keeps_its_place(store: Store) -> None:
    first = await leased(store)
    second = await create(store)

    await store.release(first.lease_id or "", after(1), costs_attempt=True)

    granted = await lease(store, 2, at=after(2))
    assert granted_ids(granted) == [first.command_id, second.command_id]
    again = granted.grants[0].command
    assert again.attempt == again.lease_attempt == 2
    assert again.dispatched_at == after(2)


async def test_leases_are_extended_from_now_even_when_they_have_lapsed(store: Store) -> None:
    held = await leased(store)

    renewal = await store.renew([held.lease_id or ""], 60, after(75))

    [renewed] = renewal.renewed
    assert renewed.lease_expires_at == after(135)
    assert await read(store, held.command_id) == renewed
    assert not await store.requeue_lapsed(after(134), 10)


async def test_a_renewal_never_shortens_a_lease(store: Store) -> None:
    held = await leased(store)
    lease_id = held.lease_id or ""

    renewal = await store.renew([lease_id], 1, after(10))

    [renewed] = renewal.renewed
    assert renewed.lease_expires_at == held.lease_expires_at
    assert await read(store, held.command_id) == held
    assert await store.requeue_lapsed(after(59), 10) == []


async def test_each_lease_of_a_renewal_stands_alone(store: Store) -> None:
    held, released, done = await leased(store), await leased(store), await leased(store)
    await store.release(released.lease_id or "", NOW, costs_attempt=True)
    await store.complete(done.command_id, done.lease_id, RESULT, NOW)
    asked = [
        released.lease_id or "",
        "lease_never",
        held.lease_id or "",
        held.lease_id or "",
        done.lease_id or "",
        "",
    ]

    renewal = await store.renew(asked, 60, after(1))

    assert ids(renewal.renewed) == [held.command_id]
    assert renewal.lost == [released.lease_id, "lease_never", done.lease_id, ""]


async def test_a_renewal_tells_of_a_cancel(store: Store) -> None:
    held = await leased(store)
    await store.cancel(held.command_id, NOW)

    renewal = await store.renew([held.lease_id or ""], 60, after(1))

    assert renewal.renewed[0].cancel_requested


async def test_leases_of_other_deployments_are_lost_to_the_caller(store: Store) -> None:
    held = await leased(store)
    lease_id = held.lease_id or ""

    renewal = await store.renew([lease_id], 60, after(1), only("dep-2"))
    with pytest.raises(LeaseNotFound):
        await store.release(lease_id, NOW, costs_attempt=True, within=only("dep-2"))

    assert renewal.lost == [lease_id]
    assert await read(store, held.command_id) == held
    assert (await store.renew([lease_id], 60, after(1), only(DEPLOYMENT))).renewed
    await store.release(lease_id, NOW, costs_attempt=True, within=only(DEPLOYMENT))


async def test_a_release_costs_an_attempt(store: Store) -> None:
    held = await leased(store)

    command = await store.release(held.lease_id or "", after(1), costs_attempt=True)

    assert command.state is State.PENDING
    assert command.attempt == 2
    assert command.lease_attempt == 1
    assert await read(store, held.command_id) == command


async def test_a_drains_release_costs_none(store: Store) -> None:
    held = await leased(store, max_attempts=1)

    command = await store.release(held.lease_id or "", after(1), costs_attempt=False)

    assert command.state is State.PENDING
    assert command.attempt == 1
    assert (await lease(store, at=after(2))).grants


async def test_the_last_release_fails_the_command(store: Store) -> None:
    held = await leased(store, max_attempts=1)

    command = await store.release(held.lease_id or "", after(1), costs_attempt=True)

    assert command.state is State.FAILED
    assert command.attempt == 1
    assert command.completed_at == after(1)
    response = await response_of(store, held.command_id)
    assert isinstance(response, StoredError)
    assert response.code == "MAX_ATTEMPTS_EXCEEDED"


async def test_a_cancelled_command_is_not_redelivered(store: Store) -> None:
    held = await leased(store)
    await store.cancel(held.command_id, NOW)

    command = await store.release(held.lease_id or "", after(1), costs_attempt=False)

    assert command.state is State.FAILED
    response = await response_of(store, held.command_id)
    assert isinstance(response, StoredError)
    assert response.code == "CANCELLED"


async def test_an_overdue_command_expires_when_it_is_handed_back(store: Store) -> None:
    held = await leased(store, deadline=after(10))

    command = await store.release(held.lease_id or "", after(10), costs_attempt=True)

    assert command.state is State.EXPIRED
    assert await response_of(store, held.command_id) is None


async def test_a_lease_that_has_ended_cannot_be_released(store: Store) -> None:
    held = await leased(store)
    await store.release(held.lease_id or "", NOW, costs_attempt=True)

    for lease_id in (held.lease_id or "", "lease_never", ""):
        with pytest.raises(LeaseNotFound):
            await store.release(lease_id, NOW, costs_attempt=True)


async def test_an_older_lease_of_a_command_that_was_leased_again_is_gone(
    store: Store,
) -> None:
    first = await leased(store)
    await store.requeue_lapsed(after(60), 10)
    second = (await lease(store, at=after(61))).grants[0].command

    with pytest.raises(LeaseNotFound):
        await store.release(first.lease_id or "", after(62), costs_attempt=True)

    assert (await store.renew([first.lease_id or ""], 60, after(62))).lost
    assert await read(store, first.command_id) == second


async def test_pushes_are_leased_when_they_are_due_whoever_they_are_for(
    store: Store,
) -> None:
    await store.put_deployment(pushed(), NOW)
    await store.put_deployment(pushed(deployment_id="dep-2"), NOW)
    await create(store, command_id="cmd_1")
    await create(store, command_id="cmd_2", deployment_id="dep-2")
    await create(store, command_id="cmd_pull", deployment_id="dep-3")

    assert await store.next_push_at() == NOW
    granted = await store.lease_push(["lease_1", "lease_2", "lease_3"], 30, NOW)

    assert granted_ids(granted) == ["cmd_1", "cmd_2"]
    command = granted.grants[0].command
    assert command.state is State.DISPATCHED
    assert command.lease_id == "lease_1"
    assert command.lease_holder is None
    assert command.lease_expires_at == after(30)
    assert await store.next_push_at() is None


async def test_a_push_is_sent_again_when_it_is_due_and_under_the_same_lease(
    store: Store,
) -> None:
    await store.put_deployment(pushed(), NOW)
    await create(store, command_id="cmd_1")
    await create(store, command_id="cmd_2", created_at=after(1))
    await store.lease_push(["lease_1"], 30, NOW)

    await store.release("lease_1", after(1), costs_attempt=True, push_after=after(9))

    assert await store.next_push_at() == after(1)
    early = await store.lease_push(["lease_2", "lease_3"], 30, after(8))
    assert granted_ids(early) == ["cmd_2"]
    assert await store.next_push_at() == after(9)
    due = await store.lease_push(["lease_4"], 30, after(9))
    command = due.grants[0].command
    assert (command.attempt, command.lease_attempt, command.lease_id) == (2, 1, "lease_1")
    assert await read(store, "cmd_1") == command


async def test_a_push_whose_params_have_arrived_is_due_at_once(store: Store) -> None:
    await store.put_deployment(pushed(), NOW)
    await create(store, command_id="cmd_1", params=UPLOAD)
    assert await store.next_push_at() is None

    await store.mark_uploaded("cmd_1", PARAMS, after(30))

    assert await store.next_push_at() == after(30)
    assert granted_ids(await store.lease_push(["lease_1"], 30, after(30))) == ["cmd_1"]


async def test_the_due_times_of_pushes_move_with_the_clock(store: Store) -> None:
    await store.put_deployment(pushed(), NOW)
    await create(store, command_id="cmd_waiting")
    await store.lease_push(["lease_1"], 30, NOW)
    await create(store, command_id="cmd_other", created_at=after(9))

    assert await store.shift_leases(-3600) == 1

    assert await store.next_push_at() == after(9 - 3600)
    held = await read(store, "cmd_waiting")
    assert held.lease_expires_at == after(30 - 3600)


async def test_an_overdue_push_expires_on_the_way(store: Store) -> None:
    await store.put_deployment(pushed(), NOW)
    await create(store, command_id="cmd_1", deadline=after(5))

    granted = await store.lease_push(["lease_1"], 30, after(5))

    assert not granted.grants
    assert ids(granted.ended) == ["cmd_1"]


async def test_a_deployment_is_leased_no_more_pushes_than_it_has_room_for(store: Store) -> None:
    for name in ("dep-1", "dep-2", "dep-3"):
        await store.put_deployment(pushed(deployment_id=name), NOW)
        for number in range(3):
            await create(store, command_id=f"cmd_{name[4:]}{number}", deployment_id=name)
    fresh = [f"lease_{number}" for number in range(9)]

    granted = await store.lease_push(
        fresh, 30, after(1), rooms={"dep-1": 1, "dep-2": 0}, per_deployment=2
    )

    assert granted_ids(granted) == ["cmd_10", "cmd_30", "cmd_31"]
    assert await store.next_push_at(["dep-1", "dep-2", "dep-3"]) is None
    assert await store.next_push_at(["dep-1"]) == NOW


async def test_what_is_free_goes_first_to_where_the_fewest_are_being_sent(store: Store) -> None:
    for name in ("dep-1", "dep-2", "dep-3"):
        await store.put_deployment(pushed(deployment_id=name), NOW)
        await create(store, command_id=f"cmd_{name[4:]}", deployment_id=name)

    granted = await store.lease_push(
        ["lease_1", "lease_2"], 30, after(1), sending={"dep-1": 2, "dep-2": 1}
    )

    assert granted_ids(granted) == ["cmd_3", "cmd_2"]


@pytest.mark.parametrize("by", [{"holder": "agent-1"}, {"holder": None, "credential": "tok_1"}])
async def test_a_push_of_what_an_agent_held_before_has_a_lease_of_its_own(
    store: Store, by: dict[str, str | None]
) -> None:
    await create(store, command_id="cmd_1")
    await lease(store, lease_ids=["lease_agent"], **by)
    await store.set_push(DEPLOYMENT, "https://w.test/", None, NOW, "root")
    await store.requeue_lapsed(after(3600), 10)

    [grant] = (await store.lease_push(["lease_push"], 30, after(3600))).grants

    assert (grant.command.lease_id, grant.command.lease_attempt) == ("lease_push", 2)
    with pytest.raises(LeaseLost):
        await store.complete("cmd_1", "lease_agent", RESULT, after(3601))


async def test_what_a_receiver_holds_stays_its_own_when_pushing_ends(store: Store) -> None:
    await store.set_push(DEPLOYMENT, "https://w.test/", None, NOW, "root")
    await create(store, command_id="cmd_1")
    [grant] = (await store.lease_push(["lease_push"], 30, NOW)).grants
    await store.set_push(DEPLOYMENT, None, None, NOW)

    with pytest.raises(Forbidden):
        await store.complete("cmd_1", None, RESULT, NOW, only(DEPLOYMENT, "tok_agent"))

    done = await store.complete("cmd_1", grant.command.lease_id, RESULT, NOW)
    assert done.command.state is State.SUCCEEDED


async def test_the_push_url_of_an_operator_stays_unless_one_is_configured(store: Store) -> None:
    await create(store, command_id="cmd_1")
    assert await store.set_push(DEPLOYMENT, "https://w.test/", "sealed", NOW, "root")
    assert (await read(store, "cmd_1")).is_push

    await store.put_deployment(deployment(daemon("one")), NOW)
    kept = await store.get_deployment(DEPLOYMENT)
    await store.put_deployment(pushed(), NOW)
    configured = await store.get_deployment(DEPLOYMENT)

    assert kept is not None
    assert (kept.push_url, kept.push_token, kept.push_by) == ("https://w.test/", "sealed", "root")
    assert configured is not None
    assert configured.push_by is None
    assert await store.set_push(DEPLOYMENT, None, None, NOW)
    assert not (await read(store, "cmd_1")).is_push
    assert not await store.set_push("unknown", None, None, NOW)


async def test_a_circuit_is_kept_until_it_closes_or_the_push_url_changes(store: Store) -> None:
    circuit = PushCircuit(
        deployment_id=DEPLOYMENT, opened_at=NOW, retry_at=after(9), times=2, reason="HTTP 503"
    )
    await store.put_circuit(circuit)
    assert await store.list_circuits() == [], "it is not pushed to"

    await store.put_deployment(pushed(), NOW)
    await store.put_circuit(circuit)
    await store.put_deployment(pushed(), NOW)
    found = await store.get_deployment(DEPLOYMENT)
    assert found is not None
    assert found.circuit == circuit
    assert await store.list_circuits() == [circuit]

    await store.set_push(DEPLOYMENT, "https://other.test/", None, NOW)
    assert await store.list_circuits() == []
    await store.put_circuit(circuit)
    await store.close_circuit(DEPLOYMENT)
    assert await store.list_circuits() == []


async def test_a_token_is_sealed_unless_it_was_replaced_meanwhile(store: Store) -> None:
    await store.set_push(DEPLOYMENT, "https://w.test/", "new", NOW)

    await store.seal_push_token(DEPLOYMENT, "old", "sealed old")
    await store.seal_push_token(DEPLOYMENT, "new", "sealed")

    found = await store.get_deployment(DEPLOYMENT)
    assert found is not None
    assert found.push_token == "sealed"
