"""List filters say which commands a list is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, TypedDict

from arc_client.errors import InvalidParams
from arc_client.send_options import checked_tags
from arc_protocol.errors import OperationNotSupported
from arc_protocol.lifecycle import ShownState
from arc_protocol.messages.base import State
from arc_protocol.messages.commands import CommandList

_KNOWN_TO_ALL: Final = frozenset({"deploymentId", "state", "command"})
"""The fields by which every server filters that has lists."""


class ListFilter(TypedDict, total=False):
    """List filters are keyword arguments of `list` and `retry_all`. All that are given must match.

    None counts as absent.
    """

    deployment: str | None
    state: State | None
    """As on the wire: FAILED takes in what was cancelled. Not beside `states`."""
    states: Sequence[ShownState | str] | None
    """As people see them: CANCELLED is one of them, and FAILED is what failed otherwise."""
    command: str | None
    target: str | None
    """The resource id of the target."""
    created_by: str | None
    """The id of the token that created it."""
    idempotency_key: str | None
    tags: Mapping[str, str] | None
    created_after: datetime | None
    """From this instant on; with a time zone, as all instants."""
    created_before: datetime | None
    ended_after: datetime | None
    """With a span of time for the end, those that ended last come first."""
    ended_before: datetime | None


def query_of(which: ListFilter) -> dict[str, str | None]:
    """Return a filter as the fields of a query. Raises InvalidParams."""
    states = which.get("states")
    return {
        "deploymentId": which.get("deployment"),
        "state": which.get("state"),
        "states": None if states is None else ",".join(states),
        "command": which.get("command"),
        "target": which.get("target"),
        "createdBy": which.get("created_by"),
        "idempotencyKey": which.get("idempotency_key"),
        **{f"tag.{key}": value for key, value in (checked_tags(which.get("tags")) or {}).items()},
        "createdAfter": _instant("created_after", which.get("created_after")),
        "createdBefore": _instant("created_before", which.get("created_before")),
        "endedAfter": _instant("ended_after", which.get("ended_after")),
        "endedBefore": _instant("ended_before", which.get("ended_before")),
    }


def check_filtered(query: Mapping[str, str | None], page: CommandList) -> None:
    """Raise OperationNotSupported if a server has ignored a field of a query, as older ones do."""
    asked = {name for name, value in query.items() if value is not None}
    ignored = asked - _KNOWN_TO_ALL - set(page.filtered_by or ())
    if ignored:
        raise OperationNotSupported(
            f"this server cannot filter commands by {', '.join(sorted(ignored))}"
        )


def _instant(name: str, moment: datetime | None) -> str | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise InvalidParams(f"{name} has no time zone")
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
