"""Events of a running command: log lines and progress."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from arc_protocol.messages.base import Message, Name, State, Timestamp

MAX_EVENT_TEXT: Final = 4_000
"""Characters of a line or of a progress text."""
MAX_EVENTS_BYTES: Final = 64 * 1024
"""Of one request that brings events."""


class Progress(Message, frozen=True, kw_only=True):
    """How far a handler says that it is. Without `total`, nobody knows how much there is to do."""

    done: float
    total: float | None = None
    text: Annotated[str, msgspec.Meta(max_length=MAX_EVENT_TEXT)] | None = None


class LogLine(Message, frozen=True, kw_only=True):
    """A line that a handler wants its sender to see."""

    number: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    """Counted up by the holder, from 1 for each lease: a line that is sent again is known by it."""
    at: Timestamp
    """By the holder's clock."""
    level: Literal["debug", "info", "warning", "error"]
    message: Annotated[str, msgspec.Meta(max_length=MAX_EVENT_TEXT)]


class EventsRequest(Message, frozen=True, kw_only=True):
    """POST /commands/{id}/events: what has happened since the last one, 64 KiB at most.

    `progress` is the latest only, and replaces the one before. `dropped`: how many lines the holder
    had no room for so far.
    """

    lease_id: Name
    lines: Annotated[list[LogLine], msgspec.Meta(max_length=1_000)]
    progress: Progress | None = None
    dropped: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0


class RecordedLine(Message, frozen=True, kw_only=True):
    """A line as it was recorded. `place` counts up over all attempts of the command."""

    place: int
    attempt: int
    at: Timestamp
    level: Literal["debug", "info", "warning", "error"]
    message: str


class EventList(Message, frozen=True, kw_only=True):
    """GET /commands/{id}/events: lines after a place, and where the command stands.

    `next` is the place to go on from; once the command is terminal and nothing comes any more, no
    more will. `dropped` lines are not there: the holder or the server had no room for them.
    """

    lines: list[RecordedLine]
    next: int
    state: State
    attempt: int
    dropped: int
    progress: Progress | None = None
