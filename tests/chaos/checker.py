"""The checker judges a history by what the protocol promises, without knowing how it is kept.

The rules come from docs/protocol.md, Lifecycle, and know nothing of our code. Each is sound: it
reports only what no order of events within the stamps could have made right. Commands do not depend
on each other, so each is judged alone.

kind             asked                               answer
create           key, params, maxAttempts, deadline  id, state
upload_complete  id
status           id                                  state, attempt, response, cancelRequested
cancel           id                                  as status
payload          id                                  params
lease            seconds                             leases: [lease, id, attempt, params]
renew            leases, seconds                     renewed, lost
release          lease, id, drain
respond          lease, id, response
list                                                 ids

`params` is a digest, `response` a list: ("success", digest) or ("error", code, message).
`deadline` is an instant of the clients' clock, or None.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tests.chaos.command_histories import Story, answer_of, stories_of
from tests.chaos.history import TERMINAL, Event


class Violation(NamedTuple):
    """A promise that was not kept."""

    rule: str
    about: str
    """The command, or the key."""
    text: str


def check(events: Sequence[Event]) -> list[Violation]:
    """Every promise that this history shows to be broken."""
    found = list(_keys(events))
    stories = stories_of(events)
    found += _one_command_each(events)
    for story in stories.values():
        for rule in RULES:
            about = story.command
            found += [Violation(rule.__name__.strip("_"), about, text) for text in rule(story)]
    found += _listed(events, stories)
    return found


# Rules about all of it


def _keys(events: Sequence[Event]) -> Iterator[Violation]:
    """A key makes one command, and another key another one."""
    ids: dict[str, set[str]] = defaultdict(set)
    keys: dict[str, set[str]] = defaultdict(set)
    for event in events:
        if event.kind == "create" and event.answer is not None:
            ids[event.asked["key"]].add(event.answer["id"])
            keys[event.answer["id"]].add(event.asked["key"])
    for key, made in ids.items():
        if len(made) > 1:
            yield Violation("one_key_one_command", key, f"made {sorted(made)}")
    for command, asked in keys.items():
        if len(asked) > 1:
            yield Violation("one_key_one_command", command, f"answers {sorted(asked)}")


def _one_command_each(events: Sequence[Event]) -> Iterator[Violation]:
    """Check that a create is stored once, answered or not: params differ for each key."""
    owners: dict[str, set[str]] = defaultdict(set)
    for event in events:
        if event.kind == "payload" and event.answer is not None:
            owners[event.answer["params"]].add(event.asked["id"])
    asked = {event.asked["params"] for event in events if event.kind == "create"}
    for params, commands in owners.items():
        if len(commands) > 1:
            yield Violation("stored_once", params, f"stored as {sorted(commands)}")
        if params not in asked:
            yield Violation("stored_once", params, "no sender has sent it")


def _listed(events: Sequence[Event], stories: dict[str, Story]) -> Iterator[Violation]:
    """A list that is asked for after a create was answered holds the command."""
    for event in events:
        if event.kind != "list" or event.answer is None:
            continue
        ids = set(event.answer["ids"])
        for story in stories.values():
            known = [each for each in story.creates if each.returned < event.invoked]
            if known and story.command not in ids:
                yield Violation("acknowledged_is_there", story.command, "not in the list")


# Rules about one command


def _acknowledged_is_there(story: Story) -> Iterator[str]:
    """Check that no answer says 404 of a command whose create was answered."""
    first = min((each.returned for each in story.creates), default=math.inf)
    for event in story.missed:
        if event.invoked > first:
            yield f"{event.kind} did not find it"


def _bodies_agree(story: Story) -> Iterator[str]:
    """Params are the same everywhere: as sent, as leased, as read."""
    seen = {each.asked["params"] for each in story.creates}
    seen |= {each.params for each in story.leases if each.params is not None}
    seen |= {answer_of(each)["params"] for each in story.payloads}
    if len(seen) > 1:
        yield f"params: {sorted(seen)}"


def _state_and_response_agree(story: Story) -> Iterator[str]:
    """SUCCEEDED has a success to show, FAILED an error, and no other state anything."""
    wanted = {"SUCCEEDED": "success", "FAILED": "error"}
    for read in story.reads:
        answer = answer_of(read)
        if read.kind == "cancel":  # answers no response
            continue
        shown = None if answer["response"] is None else answer["response"][0]
        if shown != wanted.get(answer["state"]):
            yield f"{answer['state']} with {answer['response']}"


def _one_end(story: Story) -> Iterator[str]:
    """Every read of the end shows the same end."""
    states = {answer_of(read)["state"] for read in story.endings}
    if len(states) > 1:
        yield f"ended as {sorted(states)}"
    responses = {
        str(answer_of(read)["response"]) for read in story.endings if read.kind == "status"
    }
    if len(responses) > 1:
        yield f"ended with {sorted(responses)}"


def _the_end_stays(story: Story) -> Iterator[str]:
    """Check that a command that ended, or whose response was accepted, stays ended."""
    ended = [read.returned for read in story.endings]
    ended += [each.returned for each in story.responds if each.outcome == "ok"]
    first = min(ended, default=math.inf)
    for read in (*story.reads, *story.creates):
        if read.invoked > first and answer_of(read)["state"] not in TERMINAL:
            yield f"{answer_of(read)['state']} after its end"
    for granted in story.leases:
        if granted.event.invoked > first:
            yield f"leased as {granted.lease} after its end"


def _an_end_has_a_cause(story: Story) -> Iterator[str]:
    """Check that a holder handed in the response, or that the server had a reason for its own."""
    for read in story.endings:
        answer = answer_of(read)
        response = answer.get("response")
        if answer["state"] == "EXPIRED":
            deadlines = [each.asked["deadline"] for each in story.creates]
            if not any(at is not None and at < read.returned for at in deadlines):
                yield "EXPIRED before its deadline, or without one"
        elif read.kind == "cancel":
            continue
        elif response is not None and response[:2] == ["error", "CANCELLED"]:
            if not any(cancel.invoked < read.returned for cancel in story.cancels):
                yield "CANCELLED without a request for it"
        elif response is not None and response[:2] == ["error", "MAX_ATTEMPTS_EXCEEDED"]:
            if any(answer["attempt"] < each.asked["maxAttempts"] for each in story.creates):
                yield f"given up in attempt {answer['attempt']}"
        elif not any(
            each.outcome != "fail"
            and each.invoked < read.returned
            and list(each.asked["response"]) == response
            for each in story.responds
        ):
            yield f"ended with {response}, which no holder handed in, or it was refused"


def _a_stale_lease_decides_nothing(story: Story) -> Iterator[str]:
    """Check that a request under a stale lease has no effect."""
    final = next(
        (answer_of(read)["response"] for read in story.endings if _has_response(read)), None
    )
    winners = [
        each
        for each in story.responds
        if each.outcome != "fail" and list(each.asked["response"]) == final
    ]
    for stale in story.leases:
        newer = [
            other.event.returned
            for other in story.leases
            if other.lease != stale.lease and other.event.invoked > stale.event.returned
        ]
        if not newer:
            continue
        for renewal in stale.renewals:
            if renewal.invoked > min(newer) and stale.lease in (renewal.answer or {}).get(
                "renewed", ()
            ):
                yield f"{stale.lease} was renewed after a newer one was handed out"
        for end in stale.ends:
            if end.kind == "release" and end.outcome == "ok" and end.invoked > min(newer):
                yield f"{stale.lease} was released after a newer one was handed out"
        under_it = [each for each in winners if each.asked["lease"] == stale.lease]
        if under_it and len(under_it) == len(winners) and under_it[0].invoked > min(newer):
            yield f"the response of {stale.lease} stands, and a newer one had been handed out"


def _one_holder_at_a_time(story: Story) -> Iterator[str]:
    """Check that no agent is given a command while a lease on it is sure to be alive."""
    for held in story.leases:
        for other in story.leases:
            at = other.event.returned
            if (
                other.lease != held.lease
                and other.event.invoked > held.event.returned
                and held.is_kept_at(at)
                and held.is_left_untouched_until(at)
            ):
                yield f"{other.lease} was handed out while {held.lease} was alive"


def _a_lease_is_handed_out_once(story: Story) -> Iterator[str]:
    """Every lease is a new one."""
    names = [each.lease for each in story.leases]
    if len(set(names)) != len(names):
        yield f"{sorted(name for name in set(names) if names.count(name) > 1)} twice"


def _attempts_go_up(story: Story) -> Iterator[str]:
    """A later lease is of a later attempt, unless the one before was released to drain."""
    for earlier in story.leases:
        for later in story.leases:
            if later.event.invoked <= earlier.event.returned:
                continue
            drained = any(end.asked.get("drain") for end in earlier.ends)
            if later.attempt < earlier.attempt + (0 if drained else 1):
                yield f"attempt {later.attempt} after attempt {earlier.attempt}"
    most = [each.asked["maxAttempts"] for each in story.creates]
    for granted in story.leases:
        if most and granted.attempt > most[0]:
            yield f"attempt {granted.attempt} of {most[0]}"
    reads = [(read.invoked, read.returned, answer_of(read)["attempt"]) for read in story.reads]
    for _, returned, attempt in reads:
        if any(invoked > returned and less < attempt for invoked, _, less in reads):
            yield f"the attempt went down from {attempt}"


def _a_live_lease_is_honoured(story: Story) -> Iterator[str]:
    """A holder whose lease is sure to be alive, and who has ended nothing, is not turned away."""
    if not story.is_left_alone:
        return
    for granted in story.leases:
        for renewal in granted.renewals:
            if granted.lease not in (renewal.answer or {}).get("lost", ()):
                continue
            if granted.is_kept_at(renewal.returned) and granted.is_left_untouched_until(
                renewal.returned
            ):
                yield f"{granted.lease} was alive and was said to be lost"
        for end in granted.ends:
            if (
                end.outcome == "fail"
                and granted.is_kept_at(end.returned)
                and granted.is_left_untouched_until(end.returned, but=end)
            ):
                yield f"{end.kind} under {granted.lease} was refused ({end.code})"


def _uploads_come_first(story: Story) -> Iterator[str]:
    """Check that a command is leased only after its upload, and is ready from then on."""
    if any(answer_of(each)["state"] == "PENDING_UPLOAD" for each in story.creates):
        said = min((each.invoked for each in story.uploads), default=math.inf)
        if any(granted.event.returned < said for granted in story.leases):
            yield "leased before it was uploaded"
    for upload in story.uploads:
        for read in (*story.reads, *story.creates):
            if (
                upload.outcome == "ok"
                and read.invoked > upload.returned
                and answer_of(read)["state"] == "PENDING_UPLOAD"
            ):
                yield "waits for an upload that was complete"


def _a_cancel_is_not_forgotten(story: Story) -> Iterator[str]:
    """Once it was taken, every read shows that, or the end."""
    for cancel in story.cancels:
        for read in story.reads:
            answer = answer_of(read)
            if (
                cancel.outcome == "ok"
                and read.invoked > cancel.returned
                and answer["state"] not in TERMINAL
                and not answer["cancelRequested"]
            ):
                yield "a cancel was taken and is forgotten"


RULES: tuple[Callable[[Story], Iterator[str]], ...] = (
    _acknowledged_is_there,
    _bodies_agree,
    _state_and_response_agree,
    _one_end,
    _the_end_stays,
    _an_end_has_a_cause,
    _a_stale_lease_decides_nothing,
    _one_holder_at_a_time,
    _a_lease_is_handed_out_once,
    _attempts_go_up,
    _a_live_lease_is_honoured,
    _uploads_come_first,
    _a_cancel_is_not_forgotten,
)


def _has_response(read: Event) -> bool:
    return read.kind == "status" and answer_of(read)["response"] is not None
