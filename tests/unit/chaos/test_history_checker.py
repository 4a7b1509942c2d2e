"""The checker of chaos histories finds what it is there for, and nothing in a good history."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.checker import RULES, check
from tests.chaos.history import Event

SUCCESS = ["success", "body"]
ERROR = ["error", "HANDLER_ERROR", "no"]


class Story:
    """A history of one command `c` with the key `k`: a request a second, each takes half of it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.now = 0.0

    def _add(self, kind: str, answer: dict[str, Any] | None, code: str, **asked: Any) -> Story:
        outcome = "fail" if code else "unknown" if answer is None else "ok"
        returned = self.now + 0.5 if outcome != "unknown" else float("inf")
        self.events.append(Event(kind, asked, self.now, returned, outcome, answer, code))
        self.now += 1
        return self

    def wait(self, seconds: float) -> Story:
        self.now += seconds
        return self

    def create(
        self,
        command: str | None = "c",
        *,
        key: str = "k",
        params: str = "p",
        state: str = "PENDING",
        deadline: float | None = None,
        most: int = 3,
    ) -> Story:
        answer = None if command is None else {"id": command, "state": state}
        asked = {"key": key, "params": params, "deadline": deadline, "maxAttempts": most}
        return self._add("create", answer, "", **asked)

    def uploaded(self, code: str = "") -> Story:
        return self._add("upload_complete", None if code else {}, code, id="c")

    def read(
        self,
        state: str = "PENDING",
        response: list[str] | None = None,
        *,
        attempt: int = 1,
        cancel: bool = False,
        code: str = "",
    ) -> Story:
        answer = {
            "state": state,
            "attempt": attempt,
            "response": response,
            "cancelRequested": cancel,
        }
        return self._add("status", None if code else answer, code, id="c")

    def cancel(self, state: str, *, attempt: int = 1) -> Story:
        answer = {"state": state, "attempt": attempt, "cancelRequested": True, "response": None}
        return self._add("cancel", answer, "", id="c")

    def payload(self, params: str = "p", *, command: str = "c") -> Story:
        return self._add("payload", {"params": params}, "", id=command)

    def lease(
        self, lease: str = "l1", attempt: int = 1, *, seconds: int = 100, params: str = "p"
    ) -> Story:
        leased = {"lease": lease, "id": "c", "attempt": attempt, "params": params}
        return self._add("lease", {"leases": [leased]}, "", seconds=seconds)

    def renew(
        self,
        lease: str = "l1",
        *,
        lost: bool = False,
        seconds: int = 100,
        is_heard: bool = True,
    ) -> Story:
        answer = {"renewed": [] if lost else [lease], "lost": [lease] if lost else []}
        heard = answer if is_heard else None
        return self._add("renew", heard, "", leases=[lease], seconds=seconds)

    def release(self, lease: str = "l1", *, drain: bool = False, code: str = "") -> Story:
        answer = None if code else {}
        return self._add("release", answer, code, lease=lease, id="c", drain=drain)

    def respond(
        self,
        response: list[str] = SUCCESS,
        *,
        lease: str = "l1",
        code: str = "",
        is_heard: bool = True,
    ) -> Story:
        answer = {} if is_heard and not code else None
        return self._add("respond", answer, code, lease=lease, id="c", response=response)

    def list(self, *ids: str) -> Story:
        return self._add("list", {"ids": list(ids)}, "")


def a_life() -> Story:
    """Created, leased, released, lapsed, leased again, ended."""
    return (
        Story()
        .create(None)
        .create()
        .read()
        .lease("l1", 1)
        .read("DISPATCHED")
        .release("l1")
        .lease("l2", 2, seconds=1)
        .wait(2)
        .lease("l3", 3)
        .respond(["error", "LATE", "x"], lease="l2", code="LEASE_LOST")
        .renew("l3")
        .respond(lease="l3", is_heard=False)
        .respond(lease="l3")
        .respond(["error", "TOO_LATE", "x"], lease="l3")
        .read("SUCCEEDED", SUCCESS, attempt=3)
        .payload()
        .list("c")
    )


GOOD = {
    "a whole life": a_life(),
    "a create without an answer, and that never was": Story().create(None).list(),
    "a create without an answer, and that was": Story().create(None).payload().list("c"),
    "upload": Story().create(state="PENDING_UPLOAD").uploaded().read().lease(),
    "a drain costs no attempt": Story().create().lease().release(drain=True).lease("l2", 1),
    "a lapse": Story().create().lease(seconds=1).wait(5).renew(lost=True).lease("l2", 2),
    "a lapsed lease may respond": Story()
    .create()
    .lease(seconds=1)
    .wait(5)
    .respond()
    .read("SUCCEEDED", SUCCESS),
    "cancelled": Story()
    .create()
    .cancel("FAILED")
    .read("FAILED", ["error", "CANCELLED", "…"], cancel=True),
    "cancelled while leased": Story()
    .create()
    .lease()
    .cancel("DISPATCHED")
    .read("DISPATCHED", cancel=True)
    .respond(ERROR)
    .read("FAILED", ERROR, cancel=True),
    "expired": Story().create(deadline=3).wait(5).read("EXPIRED"),
    "given up": Story()
    .create(most=1)
    .lease(seconds=1)
    .wait(5)
    .read("FAILED", ["error", "MAX_ATTEMPTS_EXCEEDED", "…"]),
}

BROKEN = {
    "a create is lost": (Story().create().read(code="COMMAND_NOT_FOUND"), "acknowledged_is_there"),
    "a create is not listed": (Story().create().list(), "acknowledged_is_there"),
    "a holder hears that its command is not there": (
        Story().create().lease().respond(code="COMMAND_NOT_FOUND"),
        "acknowledged_is_there",
    ),
    "a retry makes a second command": (Story().create().create("d"), "one_key_one_command"),
    "two keys share a command": (
        Story().create().create(key="other", params="q"),
        "one_key_one_command",
    ),
    "a create without an answer is there twice": (
        Story().create(None).create().payload().payload(command="d"),
        "stored_once",
    ),
    "params come from nowhere": (Story().create().payload("q"), "stored_once"),
    "leased with another's params": (Story().create().lease(params="q"), "bodies_agree"),
    "stored with another's params": (
        Story().create().create("d", key="other", params="q").payload("q"),
        "bodies_agree",
    ),
    "failed without a response": (
        Story().create().lease().respond(ERROR).read("FAILED"),
        "state_and_response_agree",
    ),
    "succeeded with an error": (
        Story().create().lease().respond(ERROR).read("SUCCEEDED", ERROR),
        "state_and_response_agree",
    ),
    "a response before the end": (
        Story().create().lease().respond(is_heard=False).read("DISPATCHED", SUCCESS),
        "state_and_response_agree",
    ),
    "two ends": (
        Story()
        .create()
        .lease()
        .respond(is_heard=False)
        .respond(ERROR)
        .read("SUCCEEDED", SUCCESS)
        .read("FAILED", ERROR),
        "one_end",
    ),
    "the body of the end changes": (
        Story()
        .create()
        .lease()
        .respond()
        .respond(["success", "other"])
        .read("SUCCEEDED", SUCCESS)
        .read("SUCCEEDED", ["success", "other"]),
        "one_end",
    ),
    "back from the dead": (
        Story().create().lease().respond().read("SUCCEEDED", SUCCESS).read("DISPATCHED"),
        "the_end_stays",
    ),
    "an acknowledged response is lost": (
        Story().create().lease().respond().read("DISPATCHED"),
        "the_end_stays",
    ),
    "leased after its end": (Story().create().lease().respond().lease("l2", 2), "the_end_stays"),
    "a repeat answers a state of before": (
        Story().create().lease().respond().create(),
        "the_end_stays",
    ),
    "a result that no holder handed in": (
        Story().create().lease().read("SUCCEEDED", SUCCESS),
        "an_end_has_a_cause",
    ),
    "a result that was refused": (
        Story()
        .create()
        .lease(seconds=1)
        .wait(5)
        .lease("l2", 2)
        .respond(code="LEASE_LOST")
        .read("SUCCEEDED", SUCCESS),
        "an_end_has_a_cause",
    ),
    "cancelled without a request": (
        Story().create().read("FAILED", ["error", "CANCELLED", "…"]),
        "an_end_has_a_cause",
    ),
    "expired too early": (Story().create(deadline=50).read("EXPIRED"), "an_end_has_a_cause"),
    "expired without a deadline": (Story().create().read("EXPIRED"), "an_end_has_a_cause"),
    "given up too early": (
        Story().create().lease().read("FAILED", ["error", "MAX_ATTEMPTS_EXCEEDED", "…"]),
        "an_end_has_a_cause",
    ),
    "a stale holder's response stands": (
        Story()
        .create()
        .lease(seconds=1)
        .wait(5)
        .lease("l2", 2)
        .respond()
        .read("SUCCEEDED", SUCCESS, attempt=2),
        "a_stale_lease_decides_nothing",
    ),
    "a stale lease is renewed": (
        Story().create().lease(seconds=1).wait(5).lease("l2", 2).renew(),
        "a_stale_lease_decides_nothing",
    ),
    "a stale lease is released": (
        Story().create().lease(seconds=1).wait(5).lease("l2", 2).release(),
        "a_stale_lease_decides_nothing",
    ),
    "two holders": (Story().create().lease().lease("l2", 2), "one_holder_at_a_time"),
    "two holders after a renewal": (
        Story().create().lease(seconds=2).renew().wait(10).lease("l2", 2),
        "one_holder_at_a_time",
    ),
    "a renewal without an answer shortens a lease": (
        Story().create().lease().renew(seconds=1, is_heard=False).wait(5).lease("l2", 2),
        "one_holder_at_a_time",
    ),
    "the same lease twice": (
        Story().create().lease(seconds=1).wait(5).lease("l1", 2),
        "a_lease_is_handed_out_once",
    ),
    "a redelivery that is not counted": (
        Story().create().lease(seconds=1).wait(5).lease("l2", 1),
        "attempts_go_up",
    ),
    "more attempts than allowed": (Story().create(most=1).lease(attempt=2), "attempts_go_up"),
    "the attempt of a status goes down": (
        Story().create().read(attempt=2).read(attempt=1),
        "attempts_go_up",
    ),
    "a live lease is said to be lost": (
        Story().create().lease().renew(lost=True),
        "a_live_lease_is_honoured",
    ),
    "a live lease cannot respond": (
        Story().create().lease().respond(code="LEASE_LOST"),
        "a_live_lease_is_honoured",
    ),
    "a live lease cannot be released": (
        Story().create().lease().release(code="LEASE_NOT_FOUND"),
        "a_live_lease_is_honoured",
    ),
    "leased before it was uploaded": (
        Story().create(state="PENDING_UPLOAD").lease().uploaded(),
        "uploads_come_first",
    ),
    "an upload is forgotten": (
        Story().create(state="PENDING_UPLOAD").uploaded().read("PENDING_UPLOAD"),
        "uploads_come_first",
    ),
    "a cancel is forgotten": (
        Story().create().lease().cancel("DISPATCHED").read("DISPATCHED"),
        "a_cancel_is_not_forgotten",
    ),
}


@pytest.mark.parametrize("story", GOOD.values(), ids=GOOD)
def test_a_history_as_it_should_be_is_not_complained_of(story: Story):
    assert check(story.events) == []


@pytest.mark.parametrize(("story", "rule"), BROKEN.values(), ids=BROKEN)
def test_a_broken_promise_is_found(story: Story, rule: str):
    assert rule in {violation.rule for violation in check(story.events)}


def test_every_rule_is_known_to_find_something():
    expected = {rule for _, rule in BROKEN.values()}

    assert expected >= {rule.__name__.strip("_") for rule in RULES}


def test_requests_at_the_same_time_may_take_effect_in_any_order():
    asked = {"lease": "l1", "id": "c"}
    story = Story().create().lease()
    story.events += [
        Event("respond", {**asked, "response": ERROR}, 2.0, 3.0, "fail", None, "LEASE_LOST"),
        Event("release", {**asked, "drain": False}, 2.1, 2.9, "ok", {}),
    ]

    assert check(story.events) == []
