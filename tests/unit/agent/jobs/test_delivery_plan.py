"""The delivery plan, without a server and without a clock."""

from __future__ import annotations

import math
from typing import Any

import pytest

from arc_agent.jobs.delivery_plan import SHARED, SHARED_BYTES, DeliveryQueue, Pending, Plan, Window
from arc_agent.jobs.job import ReplyTo
from arc_agent.jobs.result_files import StoredBody
from arc_agent.jobs.spool_rows import Entry

BODY = StoredBody("file", 10_000_000, "sha")


def entry(seq: int, *, message_bytes: int = 100, body: StoredBody | None = None) -> Entry:
    to = ReplyTo(command_id=f"c{seq}", lease_id=f"l{seq}", command="x", attempt=1)
    return Entry(seq=seq, to=to, body=body, message_bytes=message_bytes)


def queue_of(*entries: Entry) -> DeliveryQueue:
    queue = DeliveryQueue()
    for each in entries:
        queue.add(each)
    return queue


def window(**changes: Any) -> Window:
    return Window(**{"requests": 4, "uploads": 2, "shares": True, **changes})


def seqs(plan: Plan) -> list[list[int]]:
    """The responses of each request."""
    return [[pending.entry.seq for pending in request] for request in plan.requests]


def uploads(plan: Plan) -> list[int]:
    return [pending.entry.seq for pending in plan.uploads]


def put_off(queue: DeliveryQueue, pending: Pending, due_at: float) -> None:
    """A try that has failed."""
    pending.failures += 1
    pending.due_at = due_at
    queue.put(pending)


def test_what_is_ready_goes_together_in_order() -> None:
    queue = queue_of(*map(entry, range(1, 6)))

    plan = queue.plan(0.0, window())

    assert seqs(plan) == [[1, 2, 3, 4, 5]]
    assert plan.next_at == math.inf


def test_a_response_is_in_one_plan_until_it_is_put_again() -> None:
    queue = queue_of(entry(1), entry(2))
    (first,) = queue.plan(0.0, window()).requests

    assert seqs(queue.plan(0.0, window())) == []

    queue.put(first[0])

    assert seqs(queue.plan(0.0, window())) == [[1]]


def test_a_server_that_takes_one_at_a_time_gets_as_many_requests_as_the_window_has() -> None:
    queue = queue_of(*map(entry, range(1, 6)))

    plan = queue.plan(0.0, window(requests=3, shares=False))

    assert seqs(plan) == [[1], [2], [3]]
    assert seqs(queue.plan(0.0, window(requests=0))) == []
    assert seqs(queue.plan(0.0, window(requests=1, shares=False))) == [[4]]


def test_a_request_holds_so_many_responses_and_bytes() -> None:
    many = queue_of(*map(entry, range(SHARED + 5)))
    large = queue_of(*(entry(seq, message_bytes=SHARED_BYTES // 2) for seq in range(5)))

    assert [len(each) for each in seqs(many.plan(0.0, window(requests=1)))] == [SHARED]
    assert seqs(many.plan(0.0, window(requests=1))) == [[SHARED + n for n in range(5)]]
    assert seqs(large.plan(0.0, window(requests=2))) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("reason", ["failed", "alone", "large", "of another server"])
def test_a_response_that_may_not_share_goes_alone_in_its_place(reason: str) -> None:
    size = SHARED_BYTES if reason == "large" else 100
    queue = queue_of(entry(1), entry(2, message_bytes=size), entry(3), entry(4))
    second = queue.get(2)
    assert second is not None
    second.failures = int(reason == "failed")
    second.is_alone = reason == "alone"
    second.is_ours = reason != "of another server"

    plan = queue.plan(0.0, window())

    assert seqs(plan) == [[1, 3, 4], [2]]


def test_one_request_at_a_time_keeps_the_order() -> None:
    queue = queue_of(*map(entry, range(1, 5)))
    for seq in (1, 3):
        pending = queue.get(seq)
        assert pending is not None
        pending.is_alone = True

    assert seqs(queue.plan(0.0, window(requests=1))) == [[1]]
    assert seqs(queue.plan(0.0, window(requests=1))) == [[2]]
    assert seqs(queue.plan(0.0, window(requests=1))) == [[3]]


def test_a_response_that_is_put_off_comes_when_it_is_due_and_holds_up_no_other() -> None:
    queue = queue_of(entry(1), entry(2))
    first, second = queue.plan(0.0, window()).requests[0]
    put_off(queue, first, 10.0)
    put_off(queue, second, 5.0)

    early = queue.plan(4.0, window())
    assert seqs(early) == []
    assert early.next_at == 5.0

    middle = queue.plan(5.0, window())
    assert seqs(middle) == [[2]]
    assert middle.next_at == 10.0

    assert seqs(queue.plan(10.0, window())) == [[1]]


def test_in_a_hurry_all_are_due_but_those_that_are_on_their_way() -> None:
    queue = queue_of(entry(1), entry(2), entry(3))
    first, second, third = queue.plan(0.0, window()).requests[0]
    put_off(queue, first, 100.0)
    queue.put(second)

    queue.hurry()

    assert seqs(queue.plan(0.0, window())) == [[1], [2]], "the one that failed goes alone"
    assert third.is_busy


def test_a_time_that_has_changed_counts() -> None:
    queue = queue_of(entry(1))
    ((pending,),) = queue.plan(0.0, window()).requests
    put_off(queue, pending, 10.0)
    put_off(queue, pending, 20.0)

    plan = queue.plan(15.0, window())

    assert (seqs(plan), plan.next_at) == ([], 20.0)


def test_a_response_that_was_removed_is_in_no_plan() -> None:
    queue = queue_of(entry(1), entry(2), entry(3))
    pending = queue.get(2)
    assert pending is not None
    put_off(queue, pending, 5.0)

    assert queue.remove(1) is not None
    assert queue.remove(1) is None
    assert queue.remove(2) is pending
    queue.put(pending)

    assert seqs(queue.plan(9.0, window())) == [[3]]
    assert len(queue) == 1
    assert [each.entry.seq for each in queue] == [3]


def test_bodies_are_uploaded_beside_and_their_messages_follow() -> None:
    queue = queue_of(*(entry(seq, body=BODY) for seq in (1, 2, 3)), entry(4))

    plan = queue.plan(0.0, window())
    assert uploads(plan) == [1, 2]
    assert seqs(plan) == [[4]]

    first, second = plan.uploads
    first.is_unstorable = True
    queue.put(first)
    put_off(queue, second, 7.0)
    plan = queue.plan(0.0, window())

    assert uploads(plan) == [3]
    assert seqs(plan) == [[1]], "its body goes another way"


def test_a_pause_stops_requests_and_no_uploads() -> None:
    queue = queue_of(entry(1), entry(2, body=BODY))

    plan = queue.plan(0.0, window(requests_at=3.0))

    assert (seqs(plan), uploads(plan), plan.next_at) == ([], [2], 3.0)
    assert seqs(queue.plan(3.0, window(requests_at=3.0))) == [[1]]


def test_without_messages_a_pause_wakes_nothing() -> None:
    assert queue_of().plan(0.0, window(requests_at=3.0)).next_at == math.inf


def test_another_lease_makes_a_response_due_at_once_under_its_own_url() -> None:
    queue = queue_of(entry(1))
    ((pending,),) = queue.plan(0.0, window()).requests
    put_off(queue, pending, 100.0)
    to = ReplyTo(command_id="c1", lease_id="l2", command="x", attempt=2, submit_url="https://s/1")
    assert pending.needs_token

    pending.rebind(Entry(seq=1, to=to, body=None, message_bytes=100))
    queue.put(pending)

    assert seqs(queue.plan(0.0, window())) == [[1]]
    assert not pending.needs_token


def test_a_response_that_no_longer_has_to_upload_goes_with_the_messages() -> None:
    queue = queue_of(entry(1, body=BODY))
    pending = queue.get(1)
    assert pending is not None

    pending.rebind(Entry(seq=1, to=pending.entry.to, body=BODY, message_bytes=0, is_uploaded=True))
    queue.put(pending)

    plan = queue.plan(0.0, window())
    assert (uploads(plan), seqs(plan)) == ([], [[1]])


class Counting(dict[int, Pending]):
    """Counts how often a response is looked at."""

    looks = 0

    def get(self, key: int, default: Any = None) -> Any:
        self.looks += 1
        return super().get(key, default)


def test_an_event_looks_at_no_response_that_cannot_start() -> None:
    queue = queue_of(*map(entry, range(10_000)))
    for pending in list(queue):
        put_off(queue, pending, 1e9)
    queue.plan(0.0, window(requests=0))  # each was ready before: that is found out once
    counting = queue._pending = Counting(queue._pending)

    for seq in range(10_000, 10_050):
        queue.add(entry(seq))
        assert seqs(queue.plan(0.0, window())) == [[seq]]

    assert counting.looks <= 50 * 8
