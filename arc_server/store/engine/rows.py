"""Rows of `commands` as structs, and instants as integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from arc_protocol.messages.base import CommandTarget, ResourceType, State
from arc_server.ports.records import CommandRecord, StoredParams

Row = Sequence[Any]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_STATES: Final = {state.value: state for state in State}
_TYPES: Final = {kind.value: kind for kind in ResourceType}

_TAGS: Final = msgspec.json.Decoder(dict[str, str])

NONE: Final = 0
"""Bound for an instant or a place that there is not, where the query turns it into NULL."""


class StoredCommand(msgspec.Struct, frozen=True):
    """A command under the number of its row, with its params where they were read."""

    seq: int
    command: CommandRecord
    params: StoredParams | None = None
    signature: str | None = None
    """The sender's; known only if `params` are."""


def micros(moment: datetime) -> int:
    """Return microseconds since 1970, exact for every year."""
    span = moment - _EPOCH
    return (span.days * 86_400 + span.seconds) * 1_000_000 + span.microseconds


def micros_or_none(moment: datetime | None) -> int | None:
    """Return microseconds since 1970, None for None."""
    return None if moment is None else micros(moment)


def moment(stored: int) -> datetime:
    """Return an instant in UTC."""
    return _EPOCH + timedelta(0, 0, stored)


def moment_or_none(stored: int | None) -> datetime | None:
    """Return an instant in UTC, None for None."""
    return None if stored is None else _EPOCH + timedelta(0, 0, stored)


def tags_text(tags: Mapping[str, str] | None) -> str | None:
    """Return tags as they are stored: JSON with its keys in order; None for none."""
    return None if not tags else msgspec.json.encode(dict(sorted(tags.items()))).decode()


def target_of(resource_id: str, resource_type: str) -> CommandTarget:
    """Return the target of two columns."""
    return CommandTarget(resource_id=resource_id, resource_type=_TYPES[resource_type])


def stored_command(row: Row) -> StoredCommand:
    """Read a row of `command_columns` (sql/commands.sql)."""
    return StoredCommand(row[0], command_of(row))


def command_of(row: Row) -> CommandRecord:
    """Read the command of a row of `command_columns` (sql/commands.sql)."""
    (
        _,
        command_id,
        deployment_id,
        target_id,
        target_type,
        command,
        state,
        attempt,
        max_attempts,
        created_at,
        is_push,
        dispatched_at,
        completed_at,
        deadline,
        cancel_requested,
        lease_id,
        lease_attempt,
        lease_expires_at,
        lease_holder,
        lease_credential,
        created_by,
        completed_by,
        retry_of,
        error_code,
        tags,
        not_before,
    ) = row
    return CommandRecord(
        command_id=command_id,
        deployment_id=deployment_id,
        target=CommandTarget(resource_id=target_id, resource_type=_TYPES[target_type]),
        command=command,
        state=_STATES[state],
        attempt=attempt,
        max_attempts=max_attempts,
        created_at=_EPOCH + timedelta(0, 0, created_at),
        is_push=is_push == 1,
        dispatched_at=moment_or_none(dispatched_at),
        completed_at=moment_or_none(completed_at),
        deadline=moment_or_none(deadline),
        cancel_requested=cancel_requested == 1,
        lease_id=lease_id,
        lease_attempt=lease_attempt,
        lease_expires_at=moment_or_none(lease_expires_at),
        lease_holder=lease_holder,
        lease_credential=lease_credential,
        created_by=created_by,
        completed_by=completed_by,
        retry_of=retry_of,
        error_code=error_code,
        tags=None if tags is None else _TAGS.decode(tags),
        not_before=moment_or_none(not_before),
    )
