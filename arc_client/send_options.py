"""Send options say how a command is sent: its deadline, its target, its key and its attempts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TypedDict

import msgspec

from arc_client.errors import InvalidParams
from arc_protocol.messages.base import Tags


class SendOptions(TypedDict, total=False):
    """Send options are keyword arguments of `send` and `invoke`. None counts as absent."""

    deadline: float | timedelta | datetime | None
    """When the server gives the command up: seconds from now by this machine's clock, or an
    instant."""
    target: str | None
    """One of several targets of the deployment, by its resource id."""
    idempotency_key: str | None
    """A key that was used before returns the result of that command and runs nothing. Default: a
    fresh one."""
    max_attempts: int | None
    """The most attempts that the command may have. Default: the server's."""
    not_before: float | timedelta | datetime | None
    """When it may run at the earliest, as `deadline`. Only this server waits for it."""
    tags: Mapping[str, str] | None
    """Words to find the command by, such as `{"team": "web"}`. Only this server keeps them."""


def instant_of(
    deadline: float | timedelta | datetime | None, name: str = "deadline"
) -> datetime | None:
    """Return a deadline, or another instant of that name, in UTC.

    Raises InvalidParams when it has no time zone or lies outside the calendar.
    """
    if deadline is None:
        return None
    try:
        if isinstance(deadline, datetime):
            if deadline.tzinfo is None:
                raise InvalidParams(f"the {name} has no time zone")
            return deadline.astimezone(UTC)
        if not isinstance(deadline, timedelta):
            deadline = timedelta(seconds=deadline)
        return datetime.now(UTC) + deadline
    except (OverflowError, ValueError) as error:
        raise InvalidParams(f"the {name} lies outside the calendar") from error


def checked_tags(tags: Mapping[str, str] | None) -> dict[str, str] | None:
    """Return tags that a server takes; None for none. Raises InvalidParams."""
    try:
        return msgspec.convert(dict(tags), Tags) if tags else None
    except msgspec.ValidationError as error:
        raise InvalidParams(f"tags: {error}") from None
