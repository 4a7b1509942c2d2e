"""Ending commands by a response or a cancel, and replacing what is stored for them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from arc_protocol import lifecycle
from arc_protocol.errors import ArcError, InvalidStateTransition
from arc_protocol.messages.base import State
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.ports.records import (
    Completion,
    LeasedResponse,
    StoredBody,
    StoredResponse,
    StoredSuccess,
)
from arc_server.store.engine.session import StoreSession
from arc_server.store.operations import epochs, lookup, transitions


def complete(
    db: StoreSession,
    command_id: str,
    lease_id: str | None,
    response: StoredResponse,
    now: datetime,
    within: Reach = EVERYTHING,
) -> Completion:
    """Fulfil LeaseStore.complete."""
    stored = lookup.find(db, command_id, within)
    command = stored.command
    is_undone = epochs.epoch(db).has_undone(lease_id, command)
    if not is_undone:
        within.check_lease(command, lease_id)
    if command.state in lifecycle.TERMINAL:
        return Completion(command=command, changed=False)
    if lifecycle.is_overdue(command.deadline, now):
        return Completion(command=transitions.expire(db, stored, now), changed=True)
    if lease_id is None and command.state is not State.DISPATCHED:
        end = State.SUCCEEDED if isinstance(response, StoredSuccess) else State.FAILED
        raise InvalidStateTransition(
            f"the command is {command.state}, not dispatched",
            **{"from": command.state, "to": end},
        )
    by = command.lease_credential if within.credential is None else within.credential
    if is_undone and lease_id is not None:
        ended = transitions.hand_in(db, stored, lease_id, response, now, by)
        return Completion(command=ended, changed=True)
    ended = transitions.finish(db, stored, response, now, by)
    return Completion(command=ended, changed=True)


def complete_all(
    db: StoreSession, submissions: Sequence[LeasedResponse], now: datetime, within: Reach
) -> Sequence[Completion | ArcError]:
    """Fulfil LeaseStore.complete_all. An error of one has changed nothing: it read first."""
    answers: list[Completion | ArcError] = []
    for given in submissions:
        try:
            completion = complete(db, given.command_id, given.lease_id, given.response, now, within)
        except ArcError as error:
            answers.append(error)
        else:
            answers.append(completion)
    return answers


def cancel(db: StoreSession, command_id: str, now: datetime, by: str | None) -> Completion:
    """Fulfil CommandStore.cancel."""
    stored = lookup.find(db, command_id)
    command = stored.command
    if command.state in lifecycle.TERMINAL:
        return Completion(command=command, changed=False)
    if lifecycle.is_overdue(command.deadline, now):
        return Completion(command=transitions.expire(db, stored, now), changed=True)
    if command.state is State.DISPATCHED:
        return Completion(command=transitions.request_cancel(db, stored), changed=True)
    ended = transitions.fail(db, stored, transitions.CANCELLED, now, by)
    return Completion(command=ended, changed=True)


def write_payload(
    db: StoreSession, command_id: str, params: StoredBody | None, response: StoredResponse | None
) -> None:
    """Fulfil CommandStore.write_payload."""
    stored = lookup.find(db, command_id)
    state = stored.command.state
    if state in lifecycle.TERMINAL:
        raise InvalidStateTransition(
            f"the command is {state}: what it ended with does not change",
            **{"from": state, "to": state},
        )
    if params is not None:
        transitions.replace_params(db, stored, params)
    if response is not None:
        transitions.put_response(db, stored, response)
