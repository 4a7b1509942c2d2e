"""Body refusals, without a server: pauses, substitutes, and the cancel that ends them."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any, cast

import pytest

from arc_agent.jobs.blocked import Blocked
from arc_agent.jobs.body_refusals import BodyRefusals, may_be_about_one
from arc_agent.jobs.delivery_plan import Pending
from arc_agent.jobs.job import ReplyTo
from arc_agent.jobs.lease_table import End, HeldLease
from arc_agent.jobs.result_files import StoredBody
from arc_agent.jobs.spool_rows import Entry
from arc_agent.net.connection import BackOff, NoContact

PAGE = NoContact("a web page (413) instead of the server", status=413)


class Surroundings:
    """The parts that body refusals ask: submission, contact and leases, as this test says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.answered_at: float | None = None
        self.fails_everywhere = False
        self.others_pass = True
        self.may_inline = False
        self.lease: HeldLease | None = None
        self.due: list[Pending] = []
        self.refusals = BodyRefusals(
            submission=cast("Any", self),
            contact=cast("Any", self),
            leases=cast("Any", self),
            clock=lambda: self.now,
            back_off=BackOff(random.Random(1), cap_seconds=60.0),
            on_due=self.due.append,
        )

    def fails_beyond(self, _: str) -> bool:
        return self.fails_everywhere

    async def passes_others(self, _: Pending) -> bool:
        return self.others_pass

    def may_go_inline(self, _: Pending) -> bool:
        return self.may_inline

    def get(self, _: str) -> HeldLease | None:
        return self.lease


@pytest.fixture
def around() -> Surroundings:
    return Surroundings()


def pending() -> Pending:
    to = ReplyTo(command_id="cmd_1", lease_id="lease_1", command="x", attempt=1)
    body = StoredBody("file", 3_000_000, "sha")
    return Pending(Entry(seq=1, to=to, body=body, message_bytes=100))


def lease() -> HeldLease:
    """The lease of a command whose handler is done."""
    held = HeldLease(
        lease_id="lease_1", command_id="cmd_1", command="x", attempt=1, asked_at=0.0, seconds=60.0
    )
    held.finish()
    return held


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (PAGE, True),
        (NoContact("cut", was_cut=True), True),
        (NoContact("bad gateway", status=502), True),
        (NoContact("the server's word", status=503, code="UNAVAILABLE"), False),
        (NoContact("wait", status=503, retry_after=5.0), False),
        (NoContact("token", status=401), False),
        (NoContact("proxy's credentials", status=407), False),
        (NoContact("rate", status=429), False),
    ],
)
def test_the_servers_own_word_is_never_about_one_body(error: NoContact, is_one: bool) -> None:
    assert may_be_about_one(error) is is_one


async def test_a_body_is_refused_only_where_others_pass(around: Surroundings) -> None:
    response = pending()
    assert await around.refusals.is_one(response, PAGE)

    around.others_pass = False
    assert not await around.refusals.is_one(response, PAGE)

    around.others_pass, around.fails_everywhere = True, True
    assert not await around.refusals.is_one(response, PAGE)


async def test_after_enough_tries_an_error_takes_the_place_of_a_body(around: Surroundings) -> None:
    response = pending()
    around.answered_at = 200.0  # another request was answered after the first refusal

    tries = 0
    while not response.is_replaced:
        around.refusals.count(response, PAGE)
        tries += 1

    assert tries == 8
    assert response.due_at == 0.0
    assert response.blocked is not None
    error = json.loads(response.blocked.substitute(3_000_000))
    assert error["code"] == "STORAGE_OPERATION_FAILED"
    assert json.loads(error["details"]) == {"status": 413, "bytes": 3_000_000}


async def test_a_reason_that_may_pass_gets_twice_the_tries(around: Surroundings) -> None:
    response = pending()
    around.answered_at = 200.0

    tries = 0
    while not response.is_replaced:
        around.refusals.count(response, NoContact("bad gateway", status=502))
        tries += 1

    assert tries == 16


async def test_nothing_is_replaced_before_the_server_has_answered_another(
    around: Surroundings,
) -> None:
    response = pending()

    for _ in range(40):
        around.refusals.count(response, PAGE)

    assert not response.is_replaced
    assert response.due_at >= around.now


async def test_a_substitute_that_is_refused_too_brings_the_response_back(
    around: Surroundings,
) -> None:
    response = pending()
    around.refusals.count(response, PAGE)
    response.is_replaced = True

    around.refusals.count(response, PAGE)

    assert not response.is_replaced


async def test_a_body_that_its_store_refuses_goes_by_the_server_first(
    around: Surroundings,
) -> None:
    response = pending()
    around.answered_at, around.may_inline = 200.0, True

    for _ in range(8):
        around.refusals.count(response, PAGE)

    assert response.is_unstorable
    assert not response.is_replaced
    assert response.blocked is not None
    assert response.blocked.tries == 0


async def test_a_cancel_replaces_a_blocked_response_at_once(around: Surroundings) -> None:
    response, around.lease = pending(), lease()
    around.refusals.count(response, PAGE)

    around.lease.stop(End.CANCELLED)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert around.due == [response]
    assert response.is_replaced
    assert response.blocked is not None
    assert json.loads(response.blocked.substitute(1))["code"] == "CANCELLED"


async def test_a_response_whose_command_is_cancelled_already_is_replaced_by_the_next_failure(
    around: Surroundings,
) -> None:
    response, around.lease = pending(), lease()
    around.lease.stop(End.CANCELLED)

    around.refusals.count(response, PAGE)

    assert response.is_replaced


def test_a_blocked_response_without_a_lease_is_wanted() -> None:
    assert not Blocked(0.0).is_unwanted
