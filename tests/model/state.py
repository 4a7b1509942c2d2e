"""The state that all parts of the model share, and the steps that several of them take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from arc_protocol import lifecycle
from arc_protocol.errors import CommandNotFound
from arc_protocol.messages.base import IMPLICIT_TARGET, RESERVED_TARGETS, CommandTarget, State
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.ports.records import (
    AgentPresence,
    AwaitedBlob,
    CommandRecord,
    DamagedBody,
    Grant,
    Granted,
    Holder,
    PastLease,
    PushLease,
    StoredError,
    StoredInline,
    StoredResponse,
)
from tests.model.memory_credentials import MemoryCredentials
from tests.model.records import (
    Key,
    Place,
    StoredCommand,
    ordinary_targets,
    size_of_agent,
    size_of_command,
    size_of_events,
)

CANCELLED = StoredError(code="CANCELLED", message="the command was cancelled")


class ModelState(MemoryCredentials):
    """Commands, keys, deployments and agents in dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self._commands: dict[str, StoredCommand] = {}
        self._keys: dict[tuple[str, str, str], list[Key]] = {}
        self._places: dict[str, Place] = {}
        self._agents: dict[Holder, AgentPresence] = {}
        self._sign_of_life: datetime | None = None
        self._numbers = 0

    def usage(self, deployment_id: str) -> dict[str, int]:
        """Return what a deployment uses."""
        stored = [
            each for each in self._commands.values() if each.command.deployment_id == deployment_id
        ]
        agents = [
            agent
            for agent in self._agents.values()
            if agent.registration.deployment_id == deployment_id
        ]
        return {
            "live_commands": sum(each.command.state not in lifecycle.TERMINAL for each in stored),
            "open_uploads": sum(each.command.state is State.PENDING_UPLOAD for each in stored),
            "stored_bytes": sum(map(size_of_command, stored))
            + sum(size_of_events(each.said) for each in stored)
            + sum(map(size_of_agent, agents)),
            "idempotency_keys": sum(
                len(keys) for (named, _, _), keys in self._keys.items() if named == deployment_id
            ),
            "agents": len(agents),
        }

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _find(self, command_id: str, within: Reach = EVERYTHING) -> StoredCommand:
        self._check_open()
        stored = self._commands.get(command_id)
        if stored is None or not within.covers(stored.command):
            raise CommandNotFound(f"no such command: {command_id}")
        return stored

    def _find_lease(self, lease_id: str, within: Reach) -> StoredCommand | None:
        for stored in self._live(lambda command: command.state is State.DISPATCHED):
            command = stored.command
            is_reached = within.covers(command) and within.holds(command)
            if command.lease_id == lease_id and is_reached:
                return stored
        return None

    def _live(self, which: Callable[[CommandRecord], bool]) -> list[StoredCommand]:
        self._check_open()
        return [
            stored
            for stored in self._commands.values()
            if stored.command.state in lifecycle.LIVE and which(stored.command)
        ]

    def _leases(self, which: Callable[[datetime], bool]) -> list[StoredCommand]:
        return self._live(
            lambda command: (
                command.state is State.DISPATCHED
                and command.lease_expires_at is not None
                and which(command.lease_expires_at)
            )
        )

    def _set(self, stored: StoredCommand, **changes: Any) -> CommandRecord:
        stored.command = msgspec.structs.replace(stored.command, **changes)
        return stored.command

    def _expire(self, stored: StoredCommand, now: datetime) -> CommandRecord:
        return self._set(stored, state=State.EXPIRED, completed_at=now)

    def _end(
        self,
        stored: StoredCommand,
        state: State,
        response: StoredResponse,
        now: datetime,
        by: str | None = None,
    ) -> CommandRecord:
        stored.response = response
        code = response.code if isinstance(response, StoredError) else None
        return self._set(stored, state=state, completed_at=now, completed_by=by, error_code=code)

    def _hand_back(
        self,
        stored: StoredCommand,
        now: datetime,
        *,
        costs_attempt: bool,
        how: lifecycle.LeaseEnd,
        push_after: datetime | None = None,
    ) -> CommandRecord:
        command = stored.command
        if lifecycle.is_overdue(command.deadline, now):
            return self._expire(stored, now)
        if command.cancel_requested:
            return self._end(stored, State.FAILED, CANCELLED, now)
        if costs_attempt and command.attempt >= command.max_attempts:
            error = StoredError(
                code="MAX_ATTEMPTS_EXCEEDED",
                message=f"no response after {command.max_attempts} attempts, the most allowed",
            )
            return self._end(stored, State.FAILED, error, now)
        stored.push_at = push_after or stored.push_at
        place = self._places[command.deployment_id]
        target = place.targets.get(command.target.resource_id, command.target)
        is_here = target.resource_id in {*place.targets, *RESERVED_TARGETS}
        if place.heir is not None and not is_here:
            target = place.targets[place.heir]
        stored.past.append(
            PastLease(
                lease_id=command.lease_id or "",
                attempt=command.attempt,
                holder=command.lease_holder,
                credential=command.lease_credential,
                leased_at=command.dispatched_at or command.created_at,
                ended_at=now,
                how=how,
            )
        )
        attempt = command.attempt + 1 if costs_attempt else command.attempt
        return self._set(stored, state=State.PENDING, attempt=attempt, target=target)

    def _grant(
        self,
        queue: Iterable[StoredCommand],
        lease_ids: Sequence[str],
        lease_seconds: float,
        holder: str | None,
        now: datetime,
        credential: str | None = None,
        *,
        max_bytes: int | None = None,
    ) -> Granted:
        grants: list[Grant] = []
        ended: list[CommandRecord] = []
        granted_bytes = 0
        for stored in queue:
            if len(grants) == len(lease_ids):
                break
            command, params = stored.command, stored.params
            if lifecycle.is_overdue(command.deadline, now):
                ended.append(self._expire(stored, now))
            elif isinstance(params, DamagedBody | AwaitedBlob):
                message = "the params cannot be read back: they were never uploaded"
                if isinstance(params, DamagedBody):
                    message = f"the params cannot be read back: {params.reason}"
                error = StoredError(code="SERIALIZATION_FAILED", message=message)
                ended.append(self._end(stored, State.FAILED, error, now))
            else:
                granted_bytes += len(params.data) if isinstance(params, StoredInline) else 0
                if grants and max_bytes is not None and granted_bytes > max_bytes:
                    break
                was_agents = bool(command.lease_holder or command.lease_credential)
                is_again = command.is_push and command.lease_id is not None and not was_agents
                leased = self._set(
                    stored,
                    state=State.DISPATCHED,
                    dispatched_at=now,
                    lease_id=command.lease_id if is_again else lease_ids[len(grants)],
                    lease_attempt=command.lease_attempt if is_again else command.attempt,
                    lease_expires_at=now + timedelta(seconds=lease_seconds),
                    lease_holder=holder,
                    lease_credential=credential,
                )
                grants.append(Grant(command=leased, params=params, signature=stored.signature))
        return Granted(grants=grants, ended=ended)

    def _register(self, deployment_id: str, target: CommandTarget) -> bool:
        """Register a target; whether it took over waiting commands of the implicit one."""
        place = self._places.setdefault(deployment_id, Place())
        is_first = not ordinary_targets(place) and target.resource_id not in RESERVED_TARGETS
        place.targets[target.resource_id] = target
        return is_first and self._inherit(deployment_id, target)

    def _inherit(self, deployment_id: str, target: CommandTarget) -> bool:
        self._places[deployment_id].heir = target.resource_id
        return self._move(deployment_id, IMPLICIT_TARGET.resource_id, target)

    def _move(self, deployment_id: str, from_id: str, target: CommandTarget) -> bool:
        waiting = [
            stored
            for stored in self._commands.values()
            if stored.command.deployment_id == deployment_id
            and stored.command.state in (State.PENDING, State.PENDING_UPLOAD)
            and stored.command.target.resource_id == from_id
            and stored.command.target != target
        ]
        for stored in waiting:
            self._set(stored, target=target)
        return bool(waiting)

    def _push(self, stored: StoredCommand, lease: PushLease, now: datetime) -> CommandRecord:
        """Dispatch a command that has just become ready, if it is pushed."""
        if not stored.command.is_push:
            return stored.command
        return self._set(
            stored,
            state=State.DISPATCHED,
            dispatched_at=now,
            lease_id=lease.lease_id,
            lease_attempt=1,
            lease_expires_at=lease.expires_at,
        )
