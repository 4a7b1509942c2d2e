"""A history sorted by command: each with its leases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.history import TERMINAL, Event

CLOCK_SLACK_SECONDS = 0.1
"""By how much the server's clock may be off against the clients', from one start to the next."""


@dataclass
class Granted:
    """A lease as its holder got to know it."""

    lease: str
    attempt: int
    params: str | None
    """None: they were not in the envelope."""
    event: Event
    ends: list[Event] = field(default_factory=list)
    """Releases and responses under it, in order of asking."""
    renewals: list[Event] = field(default_factory=list)

    def is_kept_at(self, instant: float) -> bool:
        """Return True if it cannot have lapsed by then: a late enough grant or renewal."""
        kept = [self.event, *(each for each in self.renewals if self._renewed_by(each))]
        return any(
            each.invoked + each.asked["seconds"] - CLOCK_SLACK_SECONDS > instant
            for each in kept
            if each.returned <= instant
        )

    def _renewed_by(self, event: Event) -> bool:
        return event.answer is not None and self.lease in event.answer["renewed"]

    def is_left_untouched_until(self, instant: float, *, but: Event | None = None) -> bool:
        """Return True if no request but `but` could have ended it by then."""
        return all(
            end is but or end.outcome == "fail" or end.invoked >= instant for end in self.ends
        )


@dataclass
class Story:
    """All that concerns one command."""

    command: str
    creates: list[Event] = field(default_factory=list)
    uploads: list[Event] = field(default_factory=list)
    reads: list[Event] = field(default_factory=list)
    """Status reads and cancels, answered: both tell the state."""
    missed: list[Event] = field(default_factory=list)
    """Requests that heard that there is no such command."""
    payloads: list[Event] = field(default_factory=list)
    cancels: list[Event] = field(default_factory=list)
    leases: list[Granted] = field(default_factory=list)
    responds: list[Event] = field(default_factory=list)

    @property
    def is_left_alone(self) -> bool:
        """Neither a cancel nor a deadline can have ended it."""
        return not self.cancels and all(each.asked["deadline"] is None for each in self.creates)

    @property
    def endings(self) -> list[Event]:
        """Reads that showed an end."""
        return [read for read in self.reads if answer_of(read)["state"] in TERMINAL]


def stories_of(events: Sequence[Event]) -> dict[str, Story]:
    """By command. What concerns none is in none."""
    stories: dict[str, Story] = {}

    def of(command: str) -> Story:
        return stories.setdefault(command, Story(command))

    by_lease: dict[str, Granted] = {}
    for event in sorted(events, key=lambda each: each.invoked):
        if event.kind == "create" and event.answer is not None:
            of(event.answer["id"]).creates.append(event)
        elif event.kind == "upload_complete":
            of(event.asked["id"]).uploads.append(event)
        elif event.kind == "payload" and event.answer is not None:
            of(event.asked["id"]).payloads.append(event)
        elif event.kind == "lease" and event.answer is not None:
            for each in event.answer["leases"]:
                granted = Granted(each["lease"], each["attempt"], each["params"], event)
                of(each["id"]).leases.append(granted)
                by_lease.setdefault(granted.lease, granted)
        elif event.kind in ("status", "cancel") and event.answer is not None:
            of(event.asked["id"]).reads.append(event)
        if event.kind == "cancel":
            of(event.asked["id"]).cancels.append(event)
        if event.code == "COMMAND_NOT_FOUND":
            of(event.asked["id"]).missed.append(event)
    for event in sorted(events, key=lambda each: each.invoked):
        if event.kind == "respond":
            of(event.asked["id"]).responds.append(event)
        if event.kind in ("respond", "release") and event.asked["lease"] in by_lease:
            by_lease[event.asked["lease"]].ends.append(event)
        elif event.kind == "renew":
            for lease in event.asked["leases"]:
                if lease in by_lease:
                    by_lease[lease].renewals.append(event)
    return stories


def answer_of(event: Event) -> Any:
    """The answer of a request that was answered."""
    assert event.answer is not None
    return event.answer
