"""Events of running commands: log lines and progress."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from arc_protocol.codec import encode
from arc_protocol.messages.events import EventsRequest, Progress, RecordedLine
from arc_server.ports.reach import Reach
from arc_server.ports.records import CommandRecord, EventPage
from arc_server.store.engine.rows import micros, moment, stored_command
from arc_server.store.engine.session import StoreSession
from arc_server.store.operations import lookup


class _Stream(NamedTuple):
    """A row of the query `event_stream`."""

    lease_id: str
    last_number: int = 0
    last_place: int = 0
    dropped: int = 0
    unsent: int = 0
    progress: bytes | None = None


def add(
    db: StoreSession, command_id: str, events: EventsRequest, keep: int, within: Reach
) -> CommandRecord:
    """Fulfil EventStore.add_events."""
    stored = lookup.find(db, command_id, within)
    seq, command = stored.seq, stored.command
    within.check_lease(command, events.lease_id)
    stream = _stream_of_lease(db, seq, events.lease_id)
    fresh = [line for line in events.lines if line.number > stream.last_number]
    first = stream.last_place + 1
    last_place = stream.last_place + len(fresh)
    kept_from = max(1, last_place - keep + 1)
    db.change(
        "put_event_stream",
        seq=seq,
        lease_id=events.lease_id,
        last_number=max((line.number for line in fresh), default=stream.last_number),
        last_place=last_place,
        dropped=stream.dropped,
        unsent=max(stream.unsent, events.dropped),
        progress=stream.progress if events.progress is None else encode(events.progress),
    )
    for place, line in enumerate(fresh, start=first):
        if place >= kept_from:
            db.change(
                "insert_event_line",
                seq=seq,
                place=place,
                attempt=command.lease_attempt or command.attempt,
                at=micros(line.at),
                level=line.level,
                message=line.message,
            )
    if kept_from > 1:
        db.change("drop_event_lines", seq=seq, until=kept_from - 1)
    return command


def _stream_of_lease(db: StoreSession, seq: int, lease_id: str) -> _Stream:
    """Return the stream as it stands for a lease: another lease counts its lines from 1 again."""
    row = db.row("event_stream", seq=seq)
    if row is None:
        return _Stream(lease_id)
    stream = _Stream(*row)
    if stream.lease_id == lease_id:
        return stream
    return _Stream(lease_id, 0, stream.last_place, stream.dropped + stream.unsent)


def read(db: StoreSession, command_id: str, after: int, limit: int) -> EventPage | None:
    """Fulfil EventStore.events."""
    found = db.row("find_command", command_id=command_id)
    if found is None:
        return None
    stored = stored_command(found)
    row = db.row("event_stream", seq=stored.seq)
    if row is None:
        return EventPage(command=stored.command, lines=())
    stream = _Stream(*row)
    lines = db.rows("event_lines", seq=stored.seq, after=after, limit=limit)
    first = db.row("first_event_line", seq=stored.seq)
    trimmed = stream.last_place if first is None else first[0] - 1
    return EventPage(
        command=stored.command,
        lines=[
            RecordedLine(place=place, attempt=attempt, at=moment(at), level=level, message=message)
            for place, attempt, at, level, message in lines
        ],
        progress=(
            None if stream.progress is None else msgspec.json.decode(stream.progress, type=Progress)
        ),
        dropped=stream.dropped + stream.unsent + trimmed,
    )
