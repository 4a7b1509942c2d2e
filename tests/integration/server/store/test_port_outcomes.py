"""Responses, cancels, failures: exactly one outcome."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from arc_protocol.errors import (
    ArcError,
    CommandNotFound,
    Forbidden,
    InvalidStateTransition,
    LeaseLost,
    LeaseNotFound,
)
from arc_protocol.lifecycle import TERMINAL
from arc_protocol.messages.base import State
from arc_protocol.messages.events import EventsRequest
from arc_server.ports.records import (
    CommandRecord,
    Completion,
    LeasedResponse,
    StoredBlob,
    StoredError,
    StoredInline,
    StoredResponse,
    StoredSuccess,
)
from arc_server.ports.store import Store
from tests.support.reaches import only
from tests.support.store_samples import (
    DEPLOYMENT,
    HANDLER_ERROR,
    NOW,
    PARAMS,
    RESULT,
    UPLOAD,
    after,
    create,
    lease,
    leased,
    read,
    response_of,
    secret,
    token,
)


@pytest.mark.parametrize(
    ("response", "state"),
    [
        (RESULT, State.SUCCEEDED),
        (StoredSuccess(body=StoredInline(data=b"")), State.SUCCEEDED),
        (StoredSuccess(body=StoredBlob(path="arc/r", size=9)), State.SUCCEEDED),
        (HANDLER_ERROR, State.FAILED),
        (StoredError(code="X", message="nul \0, snow \N{SNOWMAN}"), State.FAILED),
    ],
    ids=["inline", "empty", "blob", "error", "odd text"],
)
async def test_a_response_ends_the_command_and_reads_back(
    store: Store, response: StoredResponse, state: State
) -> None:
    held = await leased(store)

    outcome = await store.complete(held.command_id, held.lease_id, response, after(3))

    assert outcome.changed
    assert outcome.command.state is state
    assert outcome.command.completed_at == after(3)
    found = await store.get(held.command_id)
    assert found is not None
    assert found.command == outcome.command
    assert found.response == response
    whole = await store.get_with_bodies(held.command_id)
    assert whole is not None
    assert (whole.params, whole.response) == (PARAMS, response)


async def test_responses_handed_in_together_each_come_to_what_they_would_alone(
    store: Store,
) -> None:
    held = [await leased(store) for _ in range(4)]
    await store.cancel(held[3].command_id, after(0))
    late = await leased(store, deadline=after(2))
    await store.complete(held[1].command_id, held[1].lease_id, HANDLER_ERROR, after(1))
    given = [
        LeasedResponse(held[0].command_id, held[0].lease_id or "", RESULT),
        LeasedResponse(held[1].command_id, held[1].lease_id or "", RESULT),
        LeasedResponse(held[2].command_id, "lease_other", RESULT),
        LeasedResponse("cmd_unknown", "lease_x", RESULT),
        LeasedResponse(held[3].command_id, held[3].lease_id or "", HANDLER_ERROR),
        LeasedResponse(late.command_id, late.lease_id or "", RESULT),
        LeasedResponse(held[0].command_id, held[0].lease_id or "", HANDLER_ERROR),
    ]

    outcomes = await store.complete_all(given, after(3))

    assert [
        (type(each) if isinstance(each, ArcError) else (each.command.state, each.changed))
        for each in outcomes
    ] == [
        (State.SUCCEEDED, True),
        (State.FAILED, False),
        LeaseLost,
        CommandNotFound,
        (State.FAILED, True),
        (State.EXPIRED, True),
        (State.SUCCEEDED, False),
    ]
    found = await store.get(held[0].command_id)
    assert found is not None
    assert found.response == RESULT


async def test_responses_of_another_deployment_are_as_if_there_was_no_such_command(
    store: Store,
) -> None:
    held = await leased(store)
    given = [LeasedResponse(held.command_id, held.lease_id or "", RESULT)]

    (refused,) = await store.complete_all(given, after(1), only("another"))
    (taken,) = await store.complete_all(given, after(1), only(held.deployment_id))

    assert isinstance(refused, CommandNotFound)
    assert isinstance(taken, Completion)
    assert taken.changed


async def test_a_second_response_changes_nothing(store: Store) -> None:
    held = await leased(store)
    first = await store.complete(held.command_id, held.lease_id, RESULT, after(1))

    for lease_id in (held.lease_id, None):
        again = await store.complete(held.command_id, lease_id, HANDLER_ERROR, after(2))
        assert not again.changed
        assert again.command == first.command
    with pytest.raises(LeaseLost):
        await store.complete(held.command_id, "lease_other", HANDLER_ERROR, after(2))
    assert await response_of(store, held.command_id) == RESULT


async def test_forty_opposite_responses_at_once_have_one_outcome(store: Store) -> None:
    held = await leased(store)
    responses: list[StoredResponse] = [
        StoredSuccess(body=StoredInline(data=str(n).encode()))
        if n % 2
        else StoredError(code="X", message=str(n))
        for n in range(40)
    ]

    outcomes = await asyncio.gather(
        *(
            store.complete(held.command_id, held.lease_id, response, after(n))
            for n, response in enumerate(responses)
        )
    )

    [winner] = [n for n, outcome in enumerate(outcomes) if outcome.changed]
    found = await store.get(held.command_id)
    assert found is not None
    assert found.response == responses[winner]
    assert all(outcome.command == found.command for outcome in outcomes)
    assert found.command.state is (State.SUCCEEDED if winner % 2 else State.FAILED)


async def test_a_lapsed_lease_that_nobody_took_since_still_completes(store: Store) -> None:
    held = await leased(store)

    outcome = await store.complete(held.command_id, held.lease_id, RESULT, after(3600))

    assert outcome.changed
    assert outcome.command.state is State.SUCCEEDED


@pytest.mark.parametrize("how", ["lapsed", "released"])
async def test_a_redelivered_command_that_nobody_took_since_still_completes(
    store: Store, how: str
) -> None:
    held = await leased(store)
    if how == "lapsed":
        await store.requeue_lapsed(after(60), 10)
    else:
        await store.release(held.lease_id or "", after(60), costs_attempt=True)

    outcome = await store.complete(held.command_id, held.lease_id, RESULT, after(61))

    assert outcome.changed
    assert outcome.command.state is State.SUCCEEDED
    assert not (await lease(store, at=after(62))).grants
    assert await response_of(store, held.command_id) == RESULT


async def test_a_stale_lease_is_lost_and_the_newer_holders_response_stands(
    store: Store,
) -> None:
    first = await leased(store)
    await store.requeue_lapsed(after(60), 10)
    second = (await lease(store, at=after(61))).grants[0].command

    with pytest.raises(LeaseLost):
        await store.complete(first.command_id, first.lease_id, HANDLER_ERROR, after(62))
    outcome = await store.complete(second.command_id, second.lease_id, RESULT, after(63))

    assert outcome.changed
    assert await response_of(store, first.command_id) == RESULT


async def test_a_lease_that_never_was_is_lost(store: Store) -> None:
    held, pending = await leased(store), await create(store)

    for command in (pending, held):
        with pytest.raises(LeaseLost):
            await store.complete(command.command_id, "lease_never", RESULT, NOW)


async def test_a_response_that_names_no_lease_is_judged_by_the_state(store: Store) -> None:
    pending, uploading = await create(store), await create(store, params=UPLOAD)
    for command in (pending, uploading):
        with pytest.raises(InvalidStateTransition):
            await store.complete(command.command_id, None, RESULT, NOW)
    [grant] = (await lease(store)).grants

    outcome = await store.complete(grant.command.command_id, None, RESULT, NOW)

    assert outcome.command.state is State.SUCCEEDED


async def test_a_response_after_the_deadline_is_dropped(store: Store) -> None:
    held = await leased(store, deadline=after(10))

    outcome = await store.complete(held.command_id, held.lease_id, RESULT, after(10))

    assert outcome.changed
    assert outcome.command.state is State.EXPIRED
    whole = await store.get_with_bodies(held.command_id)
    assert whole is not None
    assert whole.response is None


async def test_a_waiting_command_is_cancelled_at_once(store: Store) -> None:
    for command in (await create(store), await create(store, params=UPLOAD)):
        outcome = await store.cancel(command.command_id, after(1))

        assert outcome.changed
        assert outcome.command.state is State.FAILED
        assert outcome.command.completed_at == after(1)
        response = await response_of(store, command.command_id)
        assert isinstance(response, StoredError)
        assert response.code == "CANCELLED"
    assert not (await lease(store, at=after(2))).grants


async def test_a_redelivered_command_is_cancelled_at_once_too(store: Store) -> None:
    held = await leased(store)
    await store.release(held.lease_id or "", NOW, costs_attempt=True)

    assert (await store.cancel(held.command_id, after(1))).command.state is State.FAILED


async def test_a_held_command_is_cancelled_through_its_holder(store: Store) -> None:
    held = await leased(store)

    outcome = await store.cancel(held.command_id, after(1))

    assert outcome.changed
    assert outcome.command.state is State.DISPATCHED
    assert outcome.command.cancel_requested
    assert await read(store, held.command_id) == outcome.command
    ended = await store.complete(held.command_id, held.lease_id, RESULT, after(2))
    assert ended.command.state is State.SUCCEEDED


async def test_a_cancel_of_a_terminal_command_changes_nothing(store: Store) -> None:
    held = await leased(store)
    await store.complete(held.command_id, held.lease_id, RESULT, after(1))

    outcome = await store.cancel(held.command_id, after(2))

    assert not outcome.changed
    assert outcome.command.state is State.SUCCEEDED


async def test_a_cancel_after_the_deadline_finds_the_command_expired(store: Store) -> None:
    command = await create(store, deadline=after(10))

    outcome = await store.cancel(command.command_id, after(11))

    assert outcome.command.state is State.EXPIRED


async def test_an_unknown_command_is_not_found(store: Store) -> None:
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: store.complete("cmd_none", None, RESULT, NOW),
        lambda: store.cancel("cmd_none", NOW),
        lambda: store.write_payload("cmd_none", PARAMS, None),
    ]
    for call in calls:
        with pytest.raises(CommandNotFound):
            await call()
    assert await store.get("cmd_none") is None
    assert await store.get_with_bodies("cmd_none") is None


async def test_a_payload_is_replaced_without_a_change_of_state(store: Store) -> None:
    command = await create(store)
    planted = StoredInline(data=b"{}")

    await store.write_payload(command.command_id, planted, RESULT)

    whole = await store.get_with_bodies(command.command_id)
    assert whole is not None
    assert whole.command == command
    assert (whole.params, whole.response) == (planted, RESULT)
    assert await response_of(store, command.command_id) is None
    [grant] = (await lease(store)).grants
    assert grant.params == planted


async def test_half_a_payload_leaves_the_other_half(store: Store) -> None:
    command = await create(store)

    await store.write_payload(command.command_id, None, RESULT)
    await store.write_payload(command.command_id, None, HANDLER_ERROR)
    await store.write_payload(command.command_id, None, None)

    whole = await store.get_with_bodies(command.command_id)
    assert whole is not None
    assert (whole.params, whole.response) == (PARAMS, HANDLER_ERROR)


async def _respond_late(store: Store, command_id: str, lease_id: str) -> Completion:
    return await store.complete(command_id, lease_id, HANDLER_ERROR, after(50))


Step = Callable[[Store, str, str], Awaitable[object]]

STEPS: dict[str, Step] = {
    "response": lambda store, command_id, lease_id: store.complete(
        command_id, lease_id, RESULT, after(5)
    ),
    "deadline": lambda store, command_id, lease_id: store.expire_due(after(10), 10),
    "release": lambda store, command_id, lease_id: store.release(
        lease_id, after(6), costs_attempt=True
    ),
    "lapse": lambda store, command_id, lease_id: store.requeue_lapsed(after(9), 10),
    "cancel": lambda store, command_id, lease_id: store.cancel(command_id, after(7)),
}


async def test_in_every_order_there_is_one_outcome_and_it_stays(store: Store) -> None:
    for number, order in enumerate(itertools.permutations(STEPS)):
        command_id = f"cmd_order_{number}"
        await create(store, command_id=command_id, deadline=after(10))
        [grant] = (await lease(store, lease_seconds=9)).grants
        assert grant.command.command_id == command_id
        outcome: tuple[Any, Any] | None = None

        for name in (*order, "late response"):
            with contextlib.suppress(LeaseNotFound, InvalidStateTransition):
                await STEPS.get(name, _respond_late)(
                    store, command_id, grant.command.lease_id or ""
                )
            found = await store.get(command_id)
            assert found is not None
            if outcome is not None:
                assert (found.command, found.response) == outcome, order
            elif found.command.state in TERMINAL:
                outcome = (found.command, found.response)
            match found.command.state:
                case State.SUCCEEDED:
                    assert found.response == RESULT
                case State.FAILED:
                    assert isinstance(found.response, StoredError)
                case _:
                    assert found.response is None

        assert outcome is not None, order


# whose lease it is

HOLDER, THIEF = only(DEPLOYMENT, "cred_holder"), only(DEPLOYMENT, "cred_thief")


async def held_by_the_holder(store: Store) -> CommandRecord:
    await create(store, created_by="tok_sender")
    (grant,) = (await lease(store, credential="cred_holder")).grants
    return grant.command


@pytest.mark.parametrize("has_ended", [False, True])
async def test_another_credential_completes_nothing_also_after_the_end(
    store: Store, has_ended: bool
) -> None:
    held = await held_by_the_holder(store)
    if has_ended:
        await store.complete(held.command_id, held.lease_id, RESULT, after(1), HOLDER)

    with pytest.raises(LeaseLost):
        await store.complete(held.command_id, held.lease_id, HANDLER_ERROR, after(2), THIEF)
    with pytest.raises(Forbidden):
        await store.complete(held.command_id, None, HANDLER_ERROR, after(2), THIEF)
    given = [LeasedResponse(held.command_id, held.lease_id or "", HANDLER_ERROR)]
    (refused,) = await store.complete_all(given, after(2), THIEF)

    assert isinstance(refused, LeaseLost)
    state = (await read(store, held.command_id)).state
    assert state is (State.SUCCEEDED if has_ended else State.DISPATCHED)


async def test_another_credential_neither_renews_nor_releases_a_lease(store: Store) -> None:
    held = await held_by_the_holder(store)
    lease_id = held.lease_id or ""

    assert (await store.renew([lease_id], 60, after(1), THIEF)).lost == [lease_id]
    with pytest.raises(LeaseNotFound):
        await store.release(lease_id, after(1), costs_attempt=True, within=THIEF)
    with pytest.raises(LeaseLost):
        await store.add_events(
            held.command_id, EventsRequest(lease_id=lease_id, lines=[]), NOW, 9, within=THIEF
        )

    assert await read(store, held.command_id) == held
    assert (await store.renew([lease_id], 60, after(1), HOLDER)).renewed


async def test_the_row_says_who_created_and_who_ended_a_command(store: Store) -> None:
    held = await held_by_the_holder(store)
    by_url = await held_by_the_holder(store)
    cancelled = await create(store, created_by="tok_sender")

    await store.complete(held.command_id, None, RESULT, after(1), HOLDER)
    await store.complete(by_url.command_id, by_url.lease_id, HANDLER_ERROR, after(1))
    await store.cancel(cancelled.command_id, after(1), "tok_operator")

    for command, ended_by in (
        (held, "cred_holder"),
        (by_url, "cred_holder"),
        (cancelled, "tok_operator"),
    ):
        row = await read(store, command.command_id)
        assert (row.created_by, row.completed_by) == ("tok_sender", ended_by)


async def test_a_revoked_credentials_leases_are_taken_back_as_if_they_had_lapsed(
    store: Store,
) -> None:
    plain, other = token(), token()
    for each in (plain, other):
        await store.put_token(each, secret(each))
    await create(store)
    (grant,) = (await lease(store, credential=plain.token_id)).grants
    last = await create(store, max_attempts=1)
    await lease(store, credential=plain.token_id)
    kept = await create(store)
    await lease(store, credential=other.token_id)
    assert await store.requeue_revoked(after(1), 10) == []

    await store.revoke_token(plain.token_id, after(1))

    assert len(await store.requeue_revoked(after(1), 1)) == 1
    assert len(await store.requeue_revoked(after(1), 10)) == 1
    assert await store.requeue_revoked(after(1), 10) == []
    back = await read(store, grant.command.command_id)
    assert (back.state, back.attempt) == (State.PENDING, 2)
    assert (await read(store, last.command_id)).state is State.FAILED
    assert (await read(store, kept.command_id)).state is State.DISPATCHED
