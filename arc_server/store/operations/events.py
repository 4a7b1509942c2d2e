"""Events of running commands: log lines and progress."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec

from arc_protocol.codec import encode
from arc_protocol.errors import LeaseLost
from arc_protocol.messages.events import EventsRequest, Progress, RecordedLine
from arc_server.ports.events import LATE_SECONDS, LINE_BYTES, size_of_line
from arc_server.ports.reach import Reach
from arc_server.ports.records import CommandRecord, EventPage, Quotas
from arc_server.store.engine.rows import micros, moment, stored_command
from arc_server.store.engine.session import StoreSession
from arc_server.store.operations import lookup
from arc_server.store.operations.quotas import has_room_for_events


class _Stream(NamedTuple):
    """A row of the query `event_stream`."""

    lease_id: str
    last_number: int = 0
    last_place: int = 0
    dropped: int = 0
    unsent: int = 0
    progress: bytes | None = None
    bytes: int = 0


def add(
    db: StoreSession,
    command_id: str,
    events: EventsRequest,
    now: datetime,
    keep: int,
    quotas: Quotas,
    within: Reach,
) -> CommandRecord:
    """Fulfil EventStore.add_events."""
    stored = lookup.find(db, command_id, within)
    seq, command = stored.seq, stored.command
    within.check_lease(command, events.lease_id)
    _check_time(command, now)
    row = db.row("event_stream", seq=seq)
    before = _Stream(events.lease_id) if row is None else _Stream(*row)
    stream = _of_lease(before, events.lease_id)
    fresh = [line for line in events.lines if line.number > stream.last_number]
    last_number = max((line.number for line in fresh), default=stream.last_number)
    dropped, progress = stream.dropped, events.progress
    if not has_room_for_events(db, command.deployment_id, quotas):
        dropped, fresh = dropped + len(fresh), []
        progress = None if progress is None else msgspec.structs.replace(progress, text=None)
    shown = stream.progress if progress is None else encode(progress)

    last_place = stream.last_place + len(fresh)
    kept_from = max(1, last_place - keep + 1)
    added = len(shown or b"") - len(before.progress or b"")
    if kept_from > 1:
        trimmed = db.rows("drop_event_lines", seq=seq, until=kept_from - 1)
        added -= sum(size + LINE_BYTES for (size,) in trimmed)
    placed = enumerate(fresh, stream.last_place + 1)
    kept = [(place, line) for place, line in placed if place >= kept_from]
    added += sum(size_of_line(line.message) for _, line in kept)
    db.change(
        "put_event_stream",
        seq=seq,
        lease_id=events.lease_id,
        last_number=last_number,
        last_place=last_place,
        dropped=dropped,
        unsent=max(stream.unsent, events.dropped),
        progress=shown,
        bytes=stream.bytes + added,
    )
    for place, line in kept:
        db.change(
            "insert_event_line",
            seq=seq,
            place=place,
            attempt=command.lease_attempt or command.attempt,
            at=micros(line.at),
            level=line.level,
            message=line.message,
        )
    db.usage.changed(command.deployment_id).stored_bytes += added
    return command


def _check_time(command: CommandRecord, now: datetime) -> None:
    """Raise LeaseLost if a command ended too long ago for events."""
    ended_at = command.completed_at
    if ended_at is not None and now - ended_at > timedelta(seconds=LATE_SECONDS):
        raise LeaseLost(
            f"the command ended more than {LATE_SECONDS} seconds ago",
            command_id=command.command_id,
            lease_id=command.lease_id,
        )


def _of_lease(stream: _Stream, lease_id: str) -> _Stream:
    """Return the stream as it stands for a lease: another lease counts its lines from 1 again."""
    if stream.lease_id == lease_id:
        return stream
    dropped = stream.dropped + stream.unsent
    return _Stream(lease_id, last_place=stream.last_place, dropped=dropped, bytes=stream.bytes)


def read(db: StoreSession, command_id: str, after: int, limit: int) -> EventPage | None:
    """Fulfil EventStore.events."""
    found = db.row("find_command", command_id=command_id)
    if found is None:
        return None
    stored = stored_command(found)
    row = db.row("event_stream", seq=stored.seq)
    if row is None:
        return EventPage(command=stored.command, lines=[])
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
