"""Everything that can happen to a leased command, in every order.

Many orders run side by side on one store, in as many slots of time as there are events: in each
slot the clock moves first, and the deadlines and leases that end in it are set so when they are
made.
Orders that differ only in what happens after the end are left out, but every event is tried there;
`make chaos` walks all of them on the store in memory.
What each step must answer and leave behind comes from a small model, written from
docs/protocol.md, Lifecycle, and not from the code.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from arc_protocol import lifecycle
from arc_protocol.errors import ArcError
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import InlineBody, SuccessResponse
from arc_protocol.messages.leases import LeaseRequest, RenewRequest
from arc_server.ports.records import (
    CommandRecord,
    CommandWithResponse,
    LeaseQuery,
    StoredError,
    StoredInline,
    StoredSuccess,
)
from arc_server.service.sweeper import SweepLimits
from tests.support.clocks import START
from tests.support.service_world import BASE, World
from tests.support.stores import KINDS, opened

SLOT_SECONDS: Final = 100
FOR_LONG: Final = 3_600
MAX_ATTEMPTS: Final = 2
NO_OUTAGE: Final = SweepLimits(outage_seconds=1e9, interval_seconds=0.5)

FIRST_RESPONDS: Final = "the first holder responds"
FIRST_RELEASES: Final = "the first holder releases"
FIRST_RENEWS: Final = "the first holder renews"
SECOND_LEASE: Final = "a second holder leases"
SECOND_RESPONDS: Final = "the second holder responds"
SECOND_RENEWS: Final = "the second holder renews"
CANCEL: Final = "cancel"
DEADLINE: Final = "the deadline passes"
LAPSE: Final = "the lease lapses"

ENDS: Final = (
    FIRST_RESPONDS,
    DEADLINE,
    FIRST_RELEASES,
    CANCEL,
    LAPSE,
    SECOND_LEASE,
    SECOND_RESPONDS,
)
RENEWALS: Final = (
    FIRST_RENEWS,
    LAPSE,
    FIRST_RELEASES,
    SECOND_LEASE,
    SECOND_RENEWS,
    SECOND_RESPONDS,
)
NEVER: Final = 10**9
SIDE_BY_SIDE: Final = {"memory": 60, "sqlite": 1_500}
"""How many orders share a store: the one in memory looks at every command at every step."""
BY_TIME: Final = frozenset({DEADLINE, LAPSE})
OK, LOST, NO_LEASE = "ok", "LEASE_LOST", "LEASE_NOT_FOUND"


class Expected:
    """The model of one command."""

    def __init__(self, order: Sequence[str], *, is_swept: bool) -> None:
        self.order = order
        self.is_swept = is_swept
        self.deadline = order.index(DEADLINE) if DEADLINE in order else NEVER
        self.lapse = order.index(LAPSE)
        self.state = State.DISPATCHED
        self.attempt = 1
        self.holder = "first"
        self.expires = self.lapse
        self.is_cancelled = False
        self.response: str | None = None

    @property
    def is_terminal(self) -> bool:
        return self.state in {State.SUCCEEDED, State.FAILED, State.EXPIRED}

    def end(self, state: State, response: str | None) -> None:
        self.state, self.response = state, response

    def expire_if_due(self, slot: int) -> bool:
        if slot >= self.deadline:
            self.end(State.EXPIRED, None)
            return True
        return False

    def hand_back(self) -> None:
        if self.is_cancelled:
            self.end(State.FAILED, "CANCELLED")
        elif self.attempt == MAX_ATTEMPTS:
            self.end(State.FAILED, "MAX_ATTEMPTS_EXCEEDED")
        else:
            self.state = State.PENDING
            self.attempt += 1

    def sweep(self, slot: int) -> None:
        if self.is_terminal or self.expire_if_due(slot):
            return
        if self.state is State.DISPATCHED and slot >= self.expires:
            self.hand_back()

    def respond(self, holder: str, slot: int) -> str:
        if holder != self.holder:
            return LOST
        if self.is_terminal or self.expire_if_due(slot):
            return OK
        self.end(State.SUCCEEDED, holder)
        return OK

    def release(self, slot: int) -> str:
        if self.state is not State.DISPATCHED or self.holder != "first":
            return NO_LEASE
        if not self.expire_if_due(slot):
            self.hand_back()
        return OK

    def cancel(self, slot: int) -> str:
        if self.is_terminal or self.expire_if_due(slot):
            return OK
        if self.state is State.PENDING:
            self.end(State.FAILED, "CANCELLED")
        else:
            self.is_cancelled = True
        return OK

    def lease(self, slot: int) -> str:
        if self.state is not State.PENDING or self.expire_if_due(slot):
            return "0"
        self.state = State.DISPATCHED
        self.holder = "second"
        self.expires = self.lapse if self.lapse > slot else NEVER
        return "1"

    def renew(self, holder: str) -> str:
        if self.state is not State.DISPATCHED or holder != self.holder:
            return "0"
        self.expires = NEVER
        return "1"

    def happen(self, event: str, slot: int) -> str | None:
        """Return what the event must be answered with; None for what only time does."""
        if self.is_swept:
            self.sweep(slot)
        if event == FIRST_RESPONDS:
            return self.respond("first", slot)
        if event == SECOND_RESPONDS:
            return self.respond("second", slot)
        if event == FIRST_RELEASES:
            return self.release(slot)
        if event == CANCEL:
            return self.cancel(slot)
        if event == SECOND_LEASE:
            return self.lease(slot)
        if event in {FIRST_RENEWS, SECOND_RENEWS}:
            return self.renew(event.split()[1])
        return None


class Walked:
    """One command on its way through one order, in the real thing."""

    def __init__(self, number: int, order: Sequence[str], *, is_swept: bool) -> None:
        self.deployment_id = f"d{number}"
        self.order = order
        self.expected = Expected(order, is_swept=is_swept)
        self.command_id = ""
        self.leases = {"first": "lease_none_1", "second": f"lease_second_{number}"}
        self.last: CommandWithResponse | None = None

    def lease_seconds(self, slot: int) -> int:
        """Of a lease taken in a slot (-1: before the first), so that it ends when it should."""
        left = self.order.index(LAPSE) - slot
        return left * SLOT_SECONDS if left > 0 else FOR_LONG

    def check(self, found: CommandWithResponse, answer: str | None, wanted: str | None) -> None:
        where = (self.order, self.expected.__dict__, found)
        command, response = found.command, found.response
        assert answer == wanted, where
        assert command.state is self.expected.state, where
        assert command.attempt == self.expected.attempt, where
        self.check_by_itself(command, response, where)
        last = self.last
        if last is not None:
            assert command.attempt >= last.command.attempt, where
            if last.command.state in lifecycle.TERMINAL:
                assert found == last, where
        self.last = found

    def check_by_itself(self, command: CommandRecord, response: Any, where: Any) -> None:
        """State and stored body agree."""
        assert 1 <= command.attempt <= MAX_ATTEMPTS, where
        assert (command.completed_at is None) == (command.state in lifecycle.LIVE), where
        if command.state is State.SUCCEEDED:
            wanted = (self.expected.response or "").encode()
            assert response == StoredSuccess(body=StoredInline(data=wanted)), where
        elif command.state is State.FAILED:
            assert isinstance(response, StoredError), where
            assert response.code == self.expected.response, where
            assert response.message, where
        else:
            assert response is None, where
        if command.state is State.DISPATCHED:
            assert command.lease_id == self.leases[self.expected.holder], where


Act = Callable[[World, Walked, int], Coroutine[Any, Any, str]]


async def through_the_service(world: World, walked: Walked, slot: int) -> str:
    """An event as a client brings it about."""
    leases, event = world.leases, walked.order[slot]
    if event in {FIRST_RESPONDS, SECOND_RESPONDS}:
        holder = event.split()[1]
        response = SuccessResponse(response=InlineBody.of(holder.encode()))
        await leases.submit_response(walked.command_id, response, lease_id=walked.leases[holder])
        return OK
    if event == FIRST_RELEASES:
        await leases.release(walked.leases["first"])
        return OK
    if event == CANCEL:
        await world.commands.cancel(walked.command_id)
        return OK
    if event in {FIRST_RENEWS, SECOND_RENEWS}:
        wanted = RenewRequest(lease_ids=[walked.leases[event.split()[1]]], lease_seconds=FOR_LONG)
        return str(len((await leases.renew(wanted)).renewed))
    request = LeaseRequest(
        deployment_id=walked.deployment_id, lease_seconds=walked.lease_seconds(slot)
    )
    leases = (await leases.lease(request, base_url=BASE)).leases
    for lease in leases:
        walked.leases["second"] = lease.lease_id
    return str(len(leases))


async def at_the_store(world: World, walked: Walked, slot: int) -> str:
    """Walk with only the sweeper to notice that a deadline has passed."""
    store, event, now = world.raw_store, walked.order[slot], world.clock.now()
    if event in {FIRST_RESPONDS, SECOND_RESPONDS}:
        holder = event.split()[1]
        body = StoredSuccess(body=StoredInline(data=holder.encode()))
        await store.complete(walked.command_id, walked.leases[holder], body, now)
        return OK
    if event == FIRST_RELEASES:
        await store.release(walked.leases["first"], now, costs_attempt=True)
        return OK
    if event == CANCEL:
        await store.cancel(walked.command_id, now)
        return OK
    if event in {FIRST_RENEWS, SECOND_RENEWS}:
        lease_ids = [walked.leases[event.split()[1]]]
        return str(len((await store.renew(lease_ids, FOR_LONG, now)).renewed))
    query = LeaseQuery(
        deployment_id=walked.deployment_id,
        target=None,
        lease_ids=[walked.leases["second"]],
        lease_seconds=walked.lease_seconds(slot),
    )
    return str(len((await store.lease(query, now)).grants))


async def begin(world: World, walked: Walked) -> None:
    """Create the command and give it to its first holder."""
    deadline_in = None
    if DEADLINE in walked.order:
        deadline_in = (walked.order.index(DEADLINE) + 1) * SLOT_SECONDS
    created = await world.create(
        walked.deployment_id, deadline_in=deadline_in, max_attempts=MAX_ATTEMPTS
    )
    walked.command_id = created.command_id
    lease = await world.lease(walked.deployment_id, seconds=walked.lease_seconds(-1))
    walked.leases["first"] = lease.lease_id


async def answer_of(coroutine: Coroutine[Any, Any, str]) -> str:
    try:
        return await coroutine
    except ArcError as refused:
        return refused.code


def time_of(slot: int) -> datetime:
    return START + timedelta(seconds=(slot + 1) * SLOT_SECONDS)


def after_the_end(order: Sequence[str], *, is_swept: bool) -> Sequence[str]:
    """Return what happens when nothing can change any more."""
    expected = Expected(order, is_swept=is_swept)
    for slot, event in enumerate(order):
        expected.happen(event, slot)
        if expected.is_terminal:
            return order[slot + 1 :]
    return ()


def is_telling(order: Sequence[str], *, is_swept: bool) -> bool:
    """Of orders that differ after the end only, those tell that try each of what is left first."""
    rest = list(after_the_end(order, is_swept=is_swept))
    if not rest:
        return True
    first = sorted(rest).index(rest[0])
    return rest == sorted(rest)[first:] + sorted(rest)[:first]


async def walk(world: World, orders: Iterable[Sequence[str]], *, is_swept: bool) -> Counter[str]:
    """Let some orders happen side by side, checking each step; how often they ended how."""
    await world.sweeper.tick()
    act = through_the_service if is_swept else at_the_store
    walks = [Walked(n, order, is_swept=is_swept) for n, order in enumerate(orders)]
    slots = len(walks[0].order)
    await asyncio.gather(*(begin(world, walked) for walked in walks))

    for slot in range(slots):
        world.clock.advance((time_of(slot) - world.clock.now()).total_seconds())
        if is_swept:
            await world.sweeper.tick()
        acting = [walked for walked in walks if walked.order[slot] not in BY_TIME]
        answers = dict(
            zip(
                (walked.command_id for walked in acting),
                await asyncio.gather(*(answer_of(act(world, one, slot)) for one in acting)),
                strict=True,
            )
        )
        for walked in walks:
            was_terminal = walked.expected.is_terminal
            wanted = walked.expected.happen(walked.order[slot], slot)
            found = walked.last
            if not was_terminal or found is None:  # what has ended is compared once more at the end
                found = await world.raw_store.get(walked.command_id)
            walked.check(found, answers.get(walked.command_id), wanted)

    world.clock.advance(SLOT_SECONDS)
    await world.sweeper.tick()
    ends: Counter[str] = Counter()
    for walked in walks:
        walked.expected.sweep(slots)
        walked.check(await world.raw_store.get(walked.command_id), None, None)
        ends[f"{walked.expected.state} {walked.expected.response or ''}".strip()] += 1
    return ends


@pytest.mark.parametrize(
    ("kind", "is_whole"),
    [
        *(pytest.param(kind, False, id=kind) for kind in KINDS),
        pytest.param("memory", True, id="whole", marks=pytest.mark.chaos),
    ],
)
@pytest.mark.parametrize("is_swept", [True, False], ids=["swept", "unswept"])
@pytest.mark.parametrize("events", [ENDS, RENEWALS], ids=["ends", "renewals"])
async def test_what_can_happen_to_a_leased_command_may_happen_in_every_order(
    tmp_path: Path,
    kind: str,
    is_whole: bool,
    events: Sequence[str],
    is_swept: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ends: Counter[str] = Counter()
    orders: Iterator[Sequence[str]] = itertools.permutations(events)
    if not is_whole:
        orders = (order for order in orders if is_telling(order, is_swept=is_swept))
    while some := list(itertools.islice(orders, SIDE_BY_SIDE[kind])):
        async with opened(kind, tmp_path) as store:
            world = World(store, sweep=NO_OUTAGE, is_flaky=False)
            ends += await walk(world, some, is_swept=is_swept)
            world.close()

    with capsys.disabled():
        print(f"\n  {kind}: {ends.total()} orders of {len(events)} events walked: {dict(ends)}")
    assert ends.total() >= (math.factorial(len(events)) if is_whole else 700)
    assert len(ends) >= (4 if events is ENDS else 3), "every end there is has been reached"
