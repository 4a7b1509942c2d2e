"""What holders say while they run a command: lines of a log, and how far they are."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from arc_protocol.codec import encode
from arc_protocol.errors import CommandNotFound, LeaseLost
from arc_protocol.messages.events import EventsRequest, Progress, RecordedLine
from arc_server.ports.records import Command, EventPage
from arc_server.store.engine.rows import command_of, micros, moment
from arc_server.store.engine.session import Session


class _Stream(NamedTuple):
    lease_id: str
    last_number: int = 0
    last_place: int = 0
    dropped: int = 0
    unsent: int = 0
    progress: bytes | None = None


def add(
    db: Session, command_id: str, events: EventsRequest, keep: int, deployment_id: str | None
) -> Command:
    """See Store.add_events."""
    row = db.row("find_command", command_id=command_id)
    if row is None or (deployment_id is not None and row[2] != deployment_id):
        raise CommandNotFound(f"no such command: {command_id}", command_id=command_id)
    seq, command = row[0], command_of(row)
    if events.lease_id != command.lease_id:
        raise LeaseLost(
            "the command has been leased again since, or never under this lease",
            command_id=command_id,
        )
    stream = _stream(db, seq, events.lease_id)
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


def _stream(db: Session, seq: int, lease_id: str) -> _Stream:
    """The stream as it stands, for the holder of a lease: another one counts from 1 again."""
    row = db.row("event_stream", seq=seq)
    if row is None:
        return _Stream(lease_id)
    stream = _Stream(*row)
    if stream.lease_id == lease_id:
        return stream
    return _Stream(lease_id, 0, stream.last_place, stream.dropped + stream.unsent)


def read(db: Session, command_id: str, after: int, limit: int) -> EventPage | None:
    """See Store.events."""
    row = db.row("find_command", command_id=command_id)
    if row is None:
        return None
    stream = db.row("event_stream", seq=row[0])
    if stream is None:
        return EventPage(command=command_of(row), lines=())
    _, _, last_place, dropped, unsent, progress = stream
    first = db.row("first_event_line", seq=row[0])
    dropped += unsent + (last_place if first is None else first[0] - 1)
    return EventPage(
        command=command_of(row),
        lines=[
            RecordedLine(place=place, attempt=attempt, at=moment(at), level=level, message=message)
            for place, attempt, at, level, message in db.rows(
                "event_lines", seq=row[0], after=after, limit=limit
            )
        ],
        progress=None if progress is None else msgspec.json.decode(progress, type=Progress),
        dropped=dropped,
    )
