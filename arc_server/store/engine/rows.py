"""Rows of `commands` as structs, and instants as integers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from arc_protocol.messages.base import CommandTarget, ResourceType, State
from arc_server.ports.records import Command

Row = tuple[Any, ...]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_STATES: Final = {state.value: state for state in State}
_TYPES: Final = {kind.value: kind for kind in ResourceType}

NONE: Final = 0
"""Bound for an instant or a place that there is not, where the query turns it into NULL."""

WIDTH: Final = 19
"""How many columns `command_columns` (sql/commands.sql) has; what is joined comes after."""


def micros(moment: datetime) -> int:
    """Microseconds since 1970, exact for every year."""
    span = moment - _EPOCH
    return (span.days * 86_400 + span.seconds) * 1_000_000 + span.microseconds


def micros_or_none(moment: datetime | None) -> int | None:
    """The same, None for None."""
    return None if moment is None else micros(moment)


def moment(stored: int) -> datetime:
    """The instant, in UTC."""
    return _EPOCH + timedelta(microseconds=stored)


def moment_or_none(stored: int | None) -> datetime | None:
    """The same, None for None."""
    return None if stored is None else _EPOCH + timedelta(microseconds=stored)


def target_of(resource_id: str, resource_type: str) -> CommandTarget:
    """Two columns as a target."""
    return CommandTarget(resource_id=resource_id, resource_type=_TYPES[resource_type])


def command_of(row: Row) -> Command:
    """A row that begins with `command_columns`. In one piece: it is done for every row read."""
    dispatched_at, completed_at, deadline, lease_expires_at = row[11], row[12], row[13], row[17]
    return Command(
        command_id=row[1],
        deployment_id=row[2],
        target=CommandTarget(resource_id=row[3], resource_type=_TYPES[row[4]]),
        command=row[5],
        state=_STATES[row[6]],
        attempt=row[7],
        max_attempts=row[8],
        created_at=_EPOCH + timedelta(0, 0, row[9]),
        is_push=row[10] == 1,
        dispatched_at=None if dispatched_at is None else _EPOCH + timedelta(0, 0, dispatched_at),
        completed_at=None if completed_at is None else _EPOCH + timedelta(0, 0, completed_at),
        deadline=None if deadline is None else _EPOCH + timedelta(0, 0, deadline),
        cancel_requested=row[14] == 1,
        lease_id=row[15],
        lease_attempt=row[16],
        lease_expires_at=(
            None if lease_expires_at is None else _EPOCH + timedelta(0, 0, lease_expires_at)
        ),
        lease_holder=row[18],
    )
