"""Ending commands by a response or a cancel, and replacing what is stored for them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from arc_protocol import lifecycle
from arc_protocol.errors import ArcError, InvalidStateTransition, LeaseLost
from arc_protocol.messages.base import State
from arc_server.ports.records import (
    CommandRecord,
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
    deployment_id: str | None = None,
) -> Completion:
    """Fulfil LeaseStore.complete."""
    stored = lookup.find(db, command_id, deployment_id)
    command = stored.command
    if command.state in lifecycle.TERMINAL:
        return Completion(command=command, changed=False)
    if lifecycle.is_overdue(command.deadline, now):
        return Completion(command=transitions.expire(db, stored, now), changed=True)
    if lease_id is not None and lease_id != command.lease_id:
        if _is_undone(db, lease_id, command):
            ended = transitions.hand_in(db, stored, lease_id, response, now)
            return Completion(command=ended, changed=True)
        raise LeaseLost(
            "the command has been leased again since, or never under this lease",
            command_id=command_id,
            lease_id=lease_id,
        )
    if lease_id is None and command.state is not State.DISPATCHED:
        end = State.SUCCEEDED if isinstance(response, StoredSuccess) else State.FAILED
        raise InvalidStateTransition(
            f"the command is {command.state}, not dispatched",
            **{"from": command.state, "to": end},
        )
    return Completion(command=transitions.finish(db, stored, response, now), changed=True)


def _is_undone(db: StoreSession, lease_id: str, command: CommandRecord) -> bool:
    """Return True if a restore has undone a lease, and the command was not leased since."""
    return epochs.is_former(db, lease_id) and (
        command.lease_id is None or epochs.is_former(db, command.lease_id)
    )


def complete_all(
    db: StoreSession,
    submissions: Sequence[LeasedResponse],
    now: datetime,
    deployment_id: str | None,
) -> Sequence[Completion | ArcError]:
    """Fulfil LeaseStore.complete_all. An error of one has changed nothing: it read first."""
    answers: list[Completion | ArcError] = []
    for given in submissions:
        try:
            completion = complete(
                db, given.command_id, given.lease_id, given.response, now, deployment_id
            )
        except ArcError as error:
            answers.append(error)
        else:
            answers.append(completion)
    return answers


def cancel(db: StoreSession, command_id: str, now: datetime) -> Completion:
    """Fulfil CommandStore.cancel."""
    stored = lookup.find(db, command_id)
    command = stored.command
    if command.state in lifecycle.TERMINAL:
        return Completion(command=command, changed=False)
    if lifecycle.is_overdue(command.deadline, now):
        return Completion(command=transitions.expire(db, stored, now), changed=True)
    if command.state is State.DISPATCHED:
        return Completion(command=transitions.request_cancel(db, stored), changed=True)
    ended = transitions.fail(db, stored, transitions.CANCELLED, now)
    return Completion(command=ended, changed=True)


def write_payload(
    db: StoreSession, command_id: str, params: StoredBody | None, response: StoredResponse | None
) -> None:
    """Fulfil CommandStore.write_payload."""
    stored = lookup.find(db, command_id)
    if params is not None:
        transitions.replace_params(db, stored.seq, params)
    if response is not None:
        transitions.put_response(db, stored.seq, response)
