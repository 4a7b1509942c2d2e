"""Finding commands: walks along indexes, newest first. Nothing here writes.

A walk looks at a bounded number of commands, so that a page takes milliseconds however rare a match
is; a page that is short for that reason has a mark to go on from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from operator import add, itemgetter
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from arc_protocol.lifecycle import ShownState
from arc_protocol.messages.base import IMPLICIT_TARGET
from arc_server.ports.reach import Reach
from arc_server.ports.records import CommandFilter, CommandPage, ListMark
from arc_server.store.engine.rows import StoredCommand, micros, stored_command, tags_text
from arc_server.store.engine.session import StoreSession

WALKED: Final = 1_000
"""The most commands that a walk looks at for one page, where its index does not judge all."""
_COUNTED: Final = (
    ShownState.PENDING_UPLOAD,
    ShownState.PENDING,
    ShownState.DISPATCHED,
    ShownState.SUCCEEDED,
    ShownState.FAILED,
    ShownState.CANCELLED,
    ShownState.EXPIRED,
)
"""In the order of the columns of `counted_states`."""
_AFTER_ALL: Final = 2**63 - 1
_SPECIAL: Final = re.compile(r"[*?\[]")
_ENDED_BADLY: Final = frozenset({ShownState.FAILED, ShownState.CANCELLED, ShownState.EXPIRED})
_WITH_CANCELLED: Final = frozenset({ShownState.FAILED, ShownState.CANCELLED})


class _Walk(NamedTuple):
    """A walk along an index that judges some fields of a filter."""

    floor: str
    """The query for the place of the last command that is looked at."""
    find: str
    judged: frozenset[str]
    where: Mapping[str, Any] = MappingProxyType({})


_CREATED: Final = _Walk("floor_created", "find_created", frozenset())
_OF_DEPLOYMENT: Final = _Walk(
    "floor_of_deployment", "find_of_deployment", frozenset({"deployment_id"})
)
_BY_NAME: Final = _Walk("floor_by_name", "find_by_name", frozenset({"command"}))
_OF_DEPLOYMENT_BY_NAME: Final = _Walk(
    "floor_of_deployment_by_name",
    "find_of_deployment_by_name",
    frozenset({"deployment_id", "command"}),
)
_IN_STATE: Final = _Walk("floor_in_state", "find_in_state", frozenset({"states"}))
_ENDED_IN_DEPLOYMENT: Final = _Walk(
    "floor_ended_badly", "find_ended_badly", frozenset({"deployment_id", "states"})
)
_OF_TARGET: Final = _Walk("floor_of_target", "find_of_target", frozenset({"target_id"}))
_BY_SENDER: Final = _Walk("floor_by_sender", "find_by_sender", frozenset({"created_by"}))
_BY_KEY: Final = _Walk("floor_by_key", "find_by_key", frozenset({"key"}))
_BY_TAG: Final = _Walk("floor_by_tag", "find_by_tag", frozenset())
_BY_ONLY_TAG: Final = _BY_TAG._replace(judged=frozenset({"tags"}))
_ENDED: Final = _Walk("floor_ended", "find_ended", frozenset({"states"}))


def list_commands(
    db: StoreSession, which: CommandFilter, before: ListMark | None, limit: int
) -> CommandPage:
    """Fulfil CommandStore.list."""
    shown = which.shown_states()
    sifted = _sifted(which, shown)
    begins, ends = (
        (which.ended_after, which.ended_before)
        if which.is_by_end
        else (which.created_after, which.created_before)
    )
    since = 0 if begins is None else micros(begins)
    end = (_AFTER_ALL, _AFTER_ALL) if ends is None else (micros(ends), 0)
    before_at, before_seq = end if before is None else min(before, end)
    found: list[tuple[ListMark, StoredCommand]] = []
    floor: ListMark | None = None
    for walk in _walks(which, shown):
        span = {"since": since, "before_at": before_at, "before_seq": before_seq, **walk.where}
        bottom = _floor(db, walk, sifted | span) if _is_to_sift(walk, sifted) else None
        at, seq = bottom or (since, 0)
        span |= {"since": max(since, at), "floor_at": at, "floor_seq": seq}
        rows = db.rows(walk.find, **sifted | span, limit=limit + 1)
        found += [(_mark(stored, which), stored) for stored in map(stored_command, rows)]
        floor = max(filter(None, (floor, bottom)), default=None)
    reached = [each for each in found if floor is None or each[0] >= floor]
    reached.sort(key=itemgetter(0), reverse=True)
    page = reached[:limit]
    return CommandPage(
        commands=[stored.command for _, stored in page],
        next_before=page[-1][0] if len(reached) > limit else floor,
    )


def count(db: StoreSession, deployment_id: str | None, within: Reach) -> Mapping[ShownState, int]:
    """Fulfil CommandStore.count, from what is counted as commands change."""
    totals = [0] * len(_COUNTED)
    if deployment_id is None:
        rows = db.each("counted_states")
    else:
        rows = iter(db.rows("counted_states_of", deployment_id=deployment_id))
    for name, *counts in rows:
        if within.allows_deployment(name):
            totals = list(map(add, totals, counts))
    return dict(zip(_COUNTED, totals, strict=True))


def _floor(db: StoreSession, walk: _Walk, params: Mapping[str, Any]) -> ListMark | None:
    """Return the place of the last command that a walk looks at; None if it looks at all."""
    row = db.row(walk.floor, **params, walked=WALKED - 1)
    return None if row is None else (row[0], row[1])


def _mark(stored: StoredCommand, which: CommandFilter) -> ListMark:
    """Return the place of a command in the list of a filter."""
    command = stored.command
    at = command.completed_at if which.is_by_end else command.created_at
    return micros(at or command.created_at), stored.seq


def _walks(which: CommandFilter, shown: frozenset[ShownState] | None) -> Sequence[_Walk]:
    """Return the walks that find the commands of a filter among as few others as can be known."""
    if which.is_by_end:
        ends = sorted({each.stored.value for each in shown or ()})
        return [_ENDED._replace(where={"state": state}) for state in ends]
    if which.idempotency_key is not None:
        return [_BY_KEY]
    if which.tags:
        key, value = min(which.tags.items())
        walk = _BY_ONLY_TAG if len(which.tags) == 1 else _BY_TAG
        return [walk._replace(where={"tag": key, "value": value})]
    has_deployment, has_command = which.deployment_id is not None, which.command is not None
    if has_deployment and has_command:
        return [_OF_DEPLOYMENT_BY_NAME]
    if has_deployment and shown is not None and shown <= _ENDED_BADLY:
        return _by_state(_ENDED_IN_DEPLOYMENT, shown)
    if shown is not None and ShownState.SUCCEEDED not in shown:
        return _by_state(_IN_STATE, shown)
    if has_deployment:
        return [_OF_DEPLOYMENT]
    if which.target_id not in (None, IMPLICIT_TARGET.resource_id):
        return [_OF_TARGET]
    if has_command:
        return [_BY_NAME]
    return [_CREATED if which.created_by is None else _BY_SENDER]


def _by_state(walk: _Walk, shown: frozenset[ShownState]) -> list[_Walk]:
    """Return a walk for each state."""
    return [
        walk._replace(
            where={
                "state": each.stored.value,
                "is_cancelled": 1 if each is ShownState.CANCELLED else 0,
            }
        )
        for each in sorted(shown)
    ]


def _sifted(which: CommandFilter, shown: frozenset[ShownState] | None) -> dict[str, Any]:
    """Return what a filter asks for, as the queries take it; None matches any."""
    return {
        "states": None if shown is None else f"|{'|'.join(sorted(shown))}|",
        "deployment_id": which.deployment_id,
        "command": which.command,
        "target_id": which.target_id,
        "created_by": which.created_by,
        "key": which.idempotency_key,
        "tags": None if not which.tags else _pattern(which.tags),
        "created_since": None if which.created_after is None else micros(which.created_after),
        "created_before": None if which.created_before is None else micros(which.created_before),
        "ended_since": None if which.ended_after is None else micros(which.ended_after),
        "ended_before": None if which.ended_before is None else micros(which.ended_before),
    }


def _pattern(tags: Mapping[str, str]) -> str:
    """Return a pattern of GLOB for the JSON of stored tags that have these among them."""
    # A quote in JSON that no backslash precedes begins or ends a key or a value.
    pairs = ((tags_text({key: tags[key]}) or "")[1:-1] for key in sorted(tags))
    return "*".join(["", *(_SPECIAL.sub(r"[\g<0>]", pair) for pair in pairs), ""])


def _is_to_sift(walk: _Walk, sifted: dict[str, Any]) -> bool:
    """Return True if a walk comes by commands that do not match."""
    asked = {field for field, value in sifted.items() if value is not None}
    if walk.find == _ENDED.find:
        is_whole = ("|FAILED|" in sifted["states"]) == ("|CANCELLED|" in sifted["states"])
        return bool(asked - {"ended_since", "ended_before", *(("states",) if is_whole else ())})
    return bool(asked - walk.judged - {"created_since", "created_before"})
