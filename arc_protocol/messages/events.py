"""Events of a running command: log lines and progress."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from arc_protocol.messages.base import Message, Name, State, Timestamp

MAX_EVENT_TEXT: Final = 4_000
"""Characters of a line or of a progress text."""
MAX_EVENTS_BYTES: Final = 64 * 1024
"""The most bytes of one request with events."""


class Progress(Message, frozen=True, kw_only=True):
    """The progress of a handler. Without `total`, the whole amount is not known."""

    done: float
    total: float | None = None
    text: Annotated[str, msgspec.Meta(max_length=MAX_EVENT_TEXT)] | None = None


class LogLine(Message, frozen=True, kw_only=True):
    """A line that a handler logs for its sender."""

    number: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    """Counts from 1 for each lease: the server knows by it a line that is sent again."""
    at: Timestamp
    """By the holder's clock."""
    level: Literal["debug", "info", "warning", "error"]
    message: Annotated[str, msgspec.Meta(max_length=MAX_EVENT_TEXT)]


class EventsRequest(Message, frozen=True, kw_only=True):
    """POST /commands/{id}/events: the events since the last request, 64 KiB at most.

    `progress` is the latest, and replaces the one before. `dropped`: how many lines the holder has
    dropped so far, for lack of room.
    """

    lease_id: Name
    lines: Annotated[list[LogLine], msgspec.Meta(max_length=1_000)]
    progress: Progress | None = None
    dropped: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0


class RecordedLine(Message, frozen=True, kw_only=True):
    """A recorded line. `place` counts up over all attempts of the command."""

    place: int
    attempt: int
    at: Timestamp
    level: Literal["debug", "info", "warning", "error"]
    message: str


class EventList(Message, frozen=True, kw_only=True):
    """GET /commands/{id}/events: lines after a place, and the state of the command.

    `next` is the place to go on from. An empty list of a terminal command is the end. `dropped`
    lines are missing: the holder or the server had no room for them.
    """

    lines: list[RecordedLine]
    next: int
    state: State
    attempt: int
    dropped: int
    progress: Progress | None = None
