"""The model of the store: dictionaries, lists in order, and the rules spelled out.

The suites compare the SQLite store with it, and unit tests of CommandService run on it. It keeps
nothing durably, and is not fast.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from arc_protocol import lifecycle
from arc_protocol.codec import encode
from arc_protocol.errors import (
    ArcError,
    CommandNotFound,
    CommandTargetAmbiguous,
    CommandTargetIdInvalid,
    CommandTargetNotFound,
    Conflict,
    DeploymentNotFound,
    Forbidden,
    IdempotencyKeyReused,
    InvalidCommand,
    InvalidStateTransition,
    LeaseLost,
    LeaseNotFound,
    QuotaExceeded,
    StoreUnavailable,
)
from arc_protocol.messages.agents import AgentRegistration
from arc_protocol.messages.base import (
    IMPLICIT_TARGET,
    RESERVED_TARGETS,
    CommandTarget,
    ResourceType,
    State,
)
from arc_protocol.messages.events import EventsRequest, Progress, RecordedLine
from arc_server.ports.agents import PAGE_BYTES, SILENT_AGENT_SECONDS
from arc_server.ports.handler_schemas import split_schemas
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.ports.records import (
    FIRST_EPOCH,
    AgentCursor,
    AgentPage,
    AgentPresence,
    AwaitedBlob,
    CommandFilter,
    CommandPage,
    CommandRecord,
    CommandWithBodies,
    CommandWithResponse,
    Completion,
    Created,
    DamagedBody,
    Deployment,
    Epoch,
    EventPage,
    Grant,
    Granted,
    Holder,
    LeasedResponse,
    LeaseQuery,
    NewCommand,
    Purged,
    PushCircuit,
    PushLease,
    Quotas,
    ReadResponse,
    Renewal,
    StoredBlob,
    StoredBody,
    StoredError,
    StoredInline,
    StoredParams,
    StoredResponse,
    StoredSuccess,
    StripMark,
    Stripped,
)
from arc_server.store.engine.rows import micros
from arc_server.store.operations.bodies import GONE
from arc_server.store.operations.retention import ABANDONED
from tests.model.memory_credentials import MemoryCredentials

CANCELLED = StoredError(code="CANCELLED", message="the command was cancelled")


@dataclass
class _Stored:
    """A command and all that belongs to it."""

    seq: int
    command: CommandRecord
    params: StoredParams
    response: ReadResponse | None = None
    signature: str | None = None
    ready_order: int = 0
    push_at: datetime | None = None
    arrived: int = 0
    said: _Said = field(default_factory=lambda: _Said())


@dataclass
class _Said:
    """What the holders of a command have said."""

    lease_id: str = ""
    last_number: int = 0
    lines: list[RecordedLine] = field(default_factory=list[RecordedLine])
    dropped: int = 0
    """Unsent by holders of earlier leases."""
    dropped_here: int = 0
    unsent: int = 0
    progress: Progress | None = None


@dataclass
class _Key:
    """What an idempotency key stands for."""

    names_target: bool
    is_implicit: bool
    """Made for the implicit target, or for the one that took over from it."""
    target_id: str
    digest: bytes
    command_id: str
    created_at: datetime


@dataclass
class _Place:
    """A deployment as registered."""

    targets: dict[str, CommandTarget] = field(default_factory=dict[str, CommandTarget])
    default: str | None = None
    heir: str | None = None
    push_url: str | None = None
    push_token: str | None = None
    push_by: str | None = None
    circuit: PushCircuit | None = None


class MemoryStore(MemoryCredentials):
    """Store without a database."""

    def __init__(self) -> None:
        super().__init__()
        self._commands: dict[str, _Stored] = {}
        self._keys: dict[tuple[str, str, str], list[_Key]] = {}
        self._places: dict[str, _Place] = {}
        self._agents: dict[Holder, AgentPresence] = {}
        self._sign_of_life: datetime | None = None
        self._numbers = 0

    # creating

    async def create(self, new: NewCommand) -> Created:
        """See Store."""
        self._check_open()
        place = self._places.get(new.deployment_id)
        if place is None and not new.auto_register:
            raise DeploymentNotFound(f"no such deployment: {new.deployment_id}")
        place = place or _Place()
        target = error = None
        try:
            target = _target_of_create(place, new)
        except (CommandTargetAmbiguous, CommandTargetIdInvalid, CommandTargetNotFound) as refusal:
            error = refusal
        key = None if new.idempotency_key is None else self._find_key(new, place, target)
        if key is not None:
            if key.command_id not in self._commands:
                raise Conflict("idempotencyKey: its command is no longer kept")
            if key.digest != new.params_digest:
                raise IdempotencyKeyReused("idempotencyKey: was used before with other params")
            stored = self._commands[key.command_id]
            return Created(command=stored.command, is_replay=True, params=stored.params)
        if target is None:
            raise error or AssertionError
        if lifecycle.is_overdue(new.deadline, new.created_at):
            raise InvalidCommand("deadline: is not in the future")
        if new.quotas is not None:
            self._check_quotas(new, new.quotas)
        if new.command_id in self._commands:
            raise StoreUnavailable(f"there is a command {new.command_id}")
        self._places.setdefault(new.deployment_id, place)
        is_named = new.target_resource_id is not None
        if is_named and new.auto_register and target.resource_id not in place.targets:
            self._register(new.deployment_id, target)
        is_awaited = isinstance(new.params, AwaitedBlob)
        number = self._next_number()
        stored = _Stored(
            seq=number,
            command=CommandRecord(
                command_id=new.command_id,
                deployment_id=new.deployment_id,
                target=target,
                command=new.command,
                state=State.PENDING_UPLOAD if is_awaited else State.PENDING,
                attempt=1,
                max_attempts=new.max_attempts,
                created_at=new.created_at,
                is_push=place.push_url is not None,
                deadline=new.deadline,
                created_by=new.created_by,
                retry_of=new.retry_of,
            ),
            params=new.params,
            signature=new.signature,
            ready_order=number,
            push_at=new.created_at,
        )
        self._commands[new.command_id] = stored
        if new.push_lease and not is_awaited:
            self._push(stored, new.push_lease, new.created_at)
        if new.idempotency_key is not None:
            self._keys.setdefault(_key_name(new), []).append(
                _Key(
                    names_target=new.target_resource_id is not None,
                    is_implicit=_is_implicit(place, target),
                    target_id=target.resource_id,
                    digest=new.params_digest,
                    command_id=new.command_id,
                    created_at=new.created_at,
                )
            )
        return Created(command=stored.command, is_replay=False, params=new.params)

    def _check_quotas(self, new: NewCommand, quotas: Quotas) -> None:
        used = self.usage(new.deployment_id)
        if (
            used["live_commands"] >= quotas.max_live_commands
            or used["stored_bytes"] >= quotas.max_stored_bytes
            or (
                isinstance(new.params, AwaitedBlob)
                and used["open_uploads"] >= quotas.max_open_uploads
            )
            or (new.idempotency_key and used["idempotency_keys"] >= quotas.max_idempotency_keys)
        ):
            raise QuotaExceeded("the deployment has used up a quota")

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
            "stored_bytes": sum(map(_stored_bytes, stored)) + sum(map(_registered_bytes, agents)),
            "idempotency_keys": sum(
                len(keys) for (named, _, _), keys in self._keys.items() if named == deployment_id
            ),
            "agents": len(agents),
        }

    def _push(self, stored: _Stored, lease: PushLease, now: datetime) -> CommandRecord:
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

    def _find_key(
        self, new: NewCommand, place: _Place, target: CommandTarget | None
    ) -> _Key | None:
        keys = self._keys.get(_key_name(new), [])
        if new.target_resource_id is None:
            for key in keys:
                if not key.names_target:
                    return key
        for key in keys:
            if target is not None and _is_same(key, place, target):
                return key
        return None

    def _register(self, deployment_id: str, target: CommandTarget) -> bool:
        """Register a target; whether it took over waiting commands of the implicit one."""
        place = self._places.setdefault(deployment_id, _Place())
        is_first = not _ordinary(place) and target.resource_id not in RESERVED_TARGETS
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

    async def mark_uploaded(
        self,
        command_id: str,
        params: StoredBody,
        now: datetime,
        push_lease: PushLease | None = None,
    ) -> CommandRecord:
        """See Store."""
        stored = self._find(command_id)
        if stored.command.state is State.PENDING_UPLOAD:
            if not lifecycle.is_overdue(stored.command.deadline, now):
                stored.params = params
                stored.ready_order = self._next_number()
                stored.push_at = now
                ready = self._set(stored, state=State.PENDING)
                return self._push(stored, push_lease, now) if push_lease else ready
            self._expire(stored, now)
        raise InvalidStateTransition(f"the command is {stored.command.state}")

    async def mark_arrived(self, command_id: str, size: int) -> bool:
        """See Store."""
        self._check_open()
        stored = self._commands.get(command_id)
        if stored is None or stored.command.state is not State.PENDING_UPLOAD:
            return False
        if isinstance(stored.params, AwaitedBlob):
            stored.arrived = size
        return True

    async def upload_room(self, deployment_id: str, most: Quotas) -> int:
        """See Store."""
        return max(0, most.max_stored_bytes - self.usage(deployment_id)["stored_bytes"])

    async def left_uploads(self, limit: int) -> Sequence[str]:
        """See Store."""
        self._check_open()
        left = [
            stored.command.command_id
            for stored in sorted(self._commands.values(), key=lambda stored: stored.seq)
            if stored.arrived
            and isinstance(stored.params, AwaitedBlob)
            and stored.command.state in lifecycle.TERMINAL
        ]
        return left[:limit]

    async def forget_uploads(self, command_ids: Sequence[str]) -> None:
        """See Store."""
        for command_id in command_ids:
            if command_id in self._commands:
                self._commands[command_id].arrived = 0

    # reading

    async def get(self, command_id: str) -> CommandWithResponse | None:
        """See Store."""
        self._check_open()
        stored = self._commands.get(command_id)
        if stored is None:
            return None
        is_terminal = stored.command.state in lifecycle.TERMINAL
        return CommandWithResponse(
            command=stored.command, response=stored.response if is_terminal else None
        )

    async def get_with_bodies(self, command_id: str) -> CommandWithBodies | None:
        """See Store."""
        self._check_open()
        stored = self._commands.get(command_id)
        if stored is None:
            return None
        return CommandWithBodies(
            command=stored.command,
            params=stored.params,
            signature=stored.signature,
            response=stored.response,
        )

    async def list(self, which: CommandFilter, before: int | None, limit: int) -> CommandPage:
        """See Store."""
        self._check_open()
        found = [
            stored
            for stored in sorted(self._commands.values(), key=lambda each: -each.seq)
            if (before is None or stored.seq < before)
            and which.deployment_id in (None, stored.command.deployment_id)
            and which.state in (None, stored.command.state)
            and which.command in (None, stored.command.command)
        ]
        page = found[:limit]
        return CommandPage(
            commands=[stored.command for stored in page],
            error_codes={
                stored.command.command_id: stored.response.code
                for stored in page
                if isinstance(stored.response, StoredError)
            },
            next_before=page[-1].seq if page and len(found) > limit else None,
        )

    async def write_payload(
        self, command_id: str, params: StoredBody | None, response: StoredResponse | None
    ) -> None:
        """See Store."""
        stored = self._find(command_id)
        if stored.command.state in lifecycle.TERMINAL:
            raise InvalidStateTransition("what a command ended with does not change")
        stored.params = params or stored.params
        stored.response = response or stored.response

    # leasing

    async def lease(self, query: LeaseQuery, now: datetime) -> Granted:
        """See Store."""
        self._check_open()
        place = self._places.get(query.deployment_id)
        if place is None and not query.auto_register:
            return Granted(grants=(), is_unknown=True)
        place = place or self._places.setdefault(query.deployment_id, _Place())
        named, inherited = query.target, False
        if named is None:
            target = _default_target(place)
        elif named.resource_id in place.targets:
            target = place.targets[named.resource_id]
        elif query.auto_register:
            target = named if _is_good_id(named.resource_id) else None
            if target is not None and len(place.targets) >= query.max_targets:
                return Granted(grants=(), is_full=True)
            inherited = target is not None and self._register(query.deployment_id, named)
        else:
            is_implicit = not _ordinary(place) and named.resource_id == IMPLICIT_TARGET.resource_id
            if not is_implicit:
                return Granted(grants=(), is_unknown=True)
            target = IMPLICIT_TARGET
        if target is None:
            return Granted(grants=())
        if named is not None and target.resource_type is not named.resource_type:
            return Granted(grants=(), type_mismatch=True)
        queue = sorted(
            (
                stored
                for stored in self._commands.values()
                if stored.command.state is State.PENDING
                and not stored.command.is_push
                and stored.command.deployment_id == query.deployment_id
                and stored.command.target.resource_id == target.resource_id
            ),
            key=lambda stored: stored.ready_order,
        )
        granted = self._grant(
            queue,
            query.lease_ids,
            query.lease_seconds,
            query.holder,
            now,
            query.credential,
            max_bytes=query.max_bytes,
        )
        return msgspec.structs.replace(granted, inherited=inherited)

    async def lease_push(
        self,
        lease_ids: Sequence[str],
        lease_seconds: float,
        now: datetime,
        *,
        rooms: Mapping[str, int] | None = None,
        per_deployment: int | None = None,
        sending: Mapping[str, int] | None = None,
    ) -> Granted:
        """See Store."""
        self._check_open()
        queues: dict[str, list[_Stored]] = {}
        for stored in self._waiting_pushes():
            if _push_at(stored) <= now:
                queues.setdefault(stored.command.deployment_id, []).append(stored)
        grants: list[Grant] = []
        ended: list[CommandRecord] = []
        for deployment_id in sorted(queues, key=lambda name: (sending or {}).get(name, 0)):
            queue = queues[deployment_id]
            left = lease_ids[len(grants) :]
            room = len(left) if per_deployment is None else per_deployment
            room = (rooms or {}).get(deployment_id, room)
            if left[:room]:
                granted = self._grant(queue, left[:room], lease_seconds, None, now)
                grants += granted.grants
                ended += granted.ended
        return Granted(grants=grants, ended=ended)

    async def next_push_at(self, skipped: Collection[str] = ()) -> datetime | None:
        """See Store."""
        self._check_open()
        waiting = self._waiting_pushes()
        return next(
            (_push_at(each) for each in waiting if each.command.deployment_id not in skipped), None
        )

    async def put_circuit(self, circuit: PushCircuit) -> None:
        """See Store."""
        place = self._places.get(circuit.deployment_id)
        if place is not None and place.push_url is not None:
            place.circuit = circuit

    async def close_circuit(self, deployment_id: str) -> None:
        """See Store."""
        if place := self._places.get(deployment_id):
            place.circuit = None

    async def list_circuits(self) -> Sequence[PushCircuit]:
        """See Store."""
        return [place.circuit for _, place in sorted(self._places.items()) if place.circuit]

    async def list_pushed(self) -> Sequence[str]:
        """See Store."""
        return [name for name, place in sorted(self._places.items()) if place.push_url is not None]

    async def set_push(
        self,
        deployment_id: str,
        push_url: str | None,
        push_token: str | None,
        now: datetime,
        by: str | None = None,
    ) -> bool:
        """See Store."""
        self._check_open()
        if push_url is None and deployment_id not in self._places:
            return False
        place = self._places.setdefault(deployment_id, _Place())
        self._set_push(deployment_id, push_url, push_token, now, by if push_url else None)
        place.circuit = None
        return True

    async def seal_push_token(self, deployment_id: str, former: str, sealed: str) -> None:
        """See Store."""
        place = self._places.get(deployment_id)
        if place is not None and place.push_token == former:
            place.push_token = sealed

    def _set_push(
        self, deployment_id: str, url: str | None, token: str | None, now: datetime, by: str | None
    ) -> None:
        place = self._places[deployment_id]
        if place.push_url != url:
            place.circuit = None
        is_changed = (place.push_url is None) is not (url is None)
        place.push_url, place.push_token, place.push_by = url, token, by
        for stored in self._live(lambda command: command.deployment_id == deployment_id):
            if is_changed:
                self._set(stored, is_push=url is not None)
                stored.push_at = now

    def _waiting_pushes(self) -> Sequence[_Stored]:
        return sorted(
            (
                stored
                for stored in self._commands.values()
                if stored.command.state is State.PENDING and stored.command.is_push
            ),
            key=lambda stored: (_push_at(stored), stored.ready_order),
        )

    def _grant(
        self,
        queue: Iterable[_Stored],
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

    async def renew(
        self,
        lease_ids: Sequence[str],
        lease_seconds: float,
        now: datetime,
        within: Reach = EVERYTHING,
    ) -> Renewal:
        """See Store."""
        self._check_open()
        renewed: list[CommandRecord] = []
        lost: list[str] = []
        for lease_id in dict.fromkeys(lease_ids):
            stored = self._find_lease(lease_id, within)
            if stored is None:
                lost.append(lease_id)
            else:
                until = now + timedelta(seconds=lease_seconds)
                until = max(until, stored.command.lease_expires_at or until)
                renewed.append(self._set(stored, lease_expires_at=until))
        return Renewal(renewed=renewed, lost=lost)

    async def release(
        self,
        lease_id: str,
        now: datetime,
        *,
        costs_attempt: bool,
        within: Reach = EVERYTHING,
        push_after: datetime | None = None,
    ) -> CommandRecord:
        """See Store."""
        self._check_open()
        stored = self._find_lease(lease_id, within)
        if stored is None:
            raise LeaseNotFound(f"no such lease, or it has ended: {lease_id}")
        return self._hand_back(stored, now, costs_attempt=costs_attempt, push_after=push_after)

    def _hand_back(
        self,
        stored: _Stored,
        now: datetime,
        *,
        costs_attempt: bool,
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
        attempt = command.attempt + 1 if costs_attempt else command.attempt
        return self._set(stored, state=State.PENDING, attempt=attempt, target=target)

    # ending

    async def complete(
        self,
        command_id: str,
        lease_id: str | None,
        response: StoredResponse,
        now: datetime,
        within: Reach = EVERYTHING,
    ) -> Completion:
        """See Store."""
        stored = self._find(command_id, within)
        command = stored.command
        _check_holder(command, lease_id, within)
        if command.state in lifecycle.TERMINAL:
            return Completion(command=command, changed=False)
        if lifecycle.is_overdue(command.deadline, now):
            return Completion(command=self._expire(stored, now), changed=True)
        if lease_id is None and command.state is not State.DISPATCHED:
            raise InvalidStateTransition(f"the command is {command.state}, not dispatched")
        by = command.lease_credential if within.credential is None else within.credential
        state = State.SUCCEEDED if isinstance(response, StoredSuccess) else State.FAILED
        return Completion(command=self._end(stored, state, response, now, by), changed=True)

    async def complete_all(
        self, submissions: Sequence[LeasedResponse], now: datetime, within: Reach = EVERYTHING
    ) -> Sequence[Completion | ArcError]:
        """See Store."""
        answers: list[Completion | ArcError] = []
        for given in submissions:
            try:
                answers.append(
                    await self.complete(
                        given.command_id, given.lease_id, given.response, now, within
                    )
                )
            except ArcError as error:
                answers.append(error)
        return answers

    async def add_events(
        self, command_id: str, request: EventsRequest, keep: int, within: Reach = EVERYTHING
    ) -> CommandRecord:
        """See Store."""
        stored = self._find(command_id, within)
        command = stored.command
        _check_holder(command, request.lease_id, within)
        said = stored.said
        if said.lease_id != request.lease_id:
            said.lease_id, said.last_number = request.lease_id, 0
            said.dropped, said.unsent = said.dropped + said.unsent, 0
            said.progress = None
        for line in request.lines:
            if line.number > said.last_number:
                said.lines.append(
                    RecordedLine(
                        place=said.dropped_here + len(said.lines) + 1,
                        attempt=command.lease_attempt or command.attempt,
                        at=line.at,
                        level=line.level,
                        message=line.message,
                    )
                )
        said.last_number = max([said.last_number, *(line.number for line in request.lines)])
        while len(said.lines) > keep:
            del said.lines[0]
            said.dropped_here += 1
        said.unsent = max(said.unsent, request.dropped)
        said.progress = request.progress or said.progress
        return command

    async def events(self, command_id: str, after: int, limit: int) -> EventPage | None:
        """See Store."""
        stored = self._commands.get(command_id)
        if stored is None:
            return None
        said = stored.said
        return EventPage(
            command=stored.command,
            lines=[line for line in said.lines if line.place > after][:limit],
            progress=said.progress,
            dropped=said.dropped + said.dropped_here + said.unsent,
        )

    async def cancel(self, command_id: str, now: datetime, by: str | None = None) -> Completion:
        """See Store."""
        stored = self._find(command_id)
        command = stored.command
        if command.state in lifecycle.TERMINAL:
            return Completion(command=command, changed=False)
        if lifecycle.is_overdue(command.deadline, now):
            return Completion(command=self._expire(stored, now), changed=True)
        if command.state is State.DISPATCHED:
            return Completion(command=self._set(stored, cancel_requested=True), changed=True)
        return Completion(command=self._end(stored, State.FAILED, CANCELLED, now, by), changed=True)

    async def expire_due(self, now: datetime, limit: int) -> Sequence[CommandRecord]:
        """See Store."""
        overdue = self._live(lambda command: lifecycle.is_overdue(command.deadline, now))
        overdue.sort(key=lambda stored: (stored.command.deadline or now, stored.seq))
        return [self._expire(stored, now) for stored in overdue[:limit]]

    async def requeue_lapsed(self, now: datetime, limit: int) -> Sequence[CommandRecord]:
        """See Store."""
        lapsed = self._leases(lambda expires_at: expires_at <= now)
        lapsed.sort(key=lambda stored: (stored.command.lease_expires_at or now, stored.seq))
        return [self._hand_back(stored, now, costs_attempt=True) for stored in lapsed[:limit]]

    async def forget_idempotency_keys(self, before: datetime, limit: int) -> int:
        """See Store."""
        self._check_open()
        forgotten = 0
        for keys in self._keys.values():
            for key in list(keys):
                is_orphan = key.command_id not in self._commands
                if is_orphan and key.created_at < before and forgotten < limit:
                    keys.remove(key)
                    forgotten += 1
        return forgotten

    async def shift_leases(self, seconds: float) -> int:
        """See Store."""
        shift = timedelta(seconds=seconds)
        live = self._leases(lambda _: True)
        for stored in live:
            until = stored.command.lease_expires_at
            self._set(stored, lease_expires_at=None if until is None else until + shift)
        for stored in self._live(lambda command: command.is_push):
            stored.push_at = None if stored.push_at is None else stored.push_at + shift
        if self._sign_of_life is not None:
            self._sign_of_life += shift
        return len(live)

    async def grant_grace(self, lapsed_since: datetime, now: datetime, until: datetime) -> int:
        """See Store."""
        lapsed = self._leases(lambda expires_at: lapsed_since <= expires_at <= now)
        for stored in lapsed:
            self._set(stored, lease_expires_at=until)
        return len(lapsed)

    async def epoch(self) -> Epoch:
        """See Store."""
        return FIRST_EPOCH

    async def begin_epoch(
        self, now: datetime, *, freeze_seconds: float, unknown_key_seconds: float
    ) -> Epoch:
        """See Store. Nothing restores the model."""
        return FIRST_EPOCH

    async def sign_of_life(self, now: datetime) -> None:
        """See Store."""
        self._check_open()
        self._sign_of_life = max(now, self._sign_of_life or now)

    async def last_sign_of_life(self) -> datetime | None:
        """See Store."""
        self._check_open()
        return self._sign_of_life

    async def has_live_leases(self) -> bool:
        """See Store."""
        return bool(self._leases(lambda _: True))

    # retention

    async def fail_abandoned_uploads(
        self, before: datetime, now: datetime, limit: int
    ) -> Sequence[CommandRecord]:
        """See Store."""
        abandoned = self._live(
            lambda command: command.state is State.PENDING_UPLOAD and command.created_at < before
        )
        abandoned.sort(key=lambda stored: (stored.command.created_at, stored.seq))
        return [self._end(stored, State.FAILED, ABANDONED, now) for stored in abandoned[:limit]]

    async def purge_commands(
        self, state: State, ended_before: datetime, keys_before: datetime, limit: int
    ) -> Purged:
        """See Store."""
        ended = self._ended(state, (0, 0), ended_before)[:limit]
        for stored in ended:
            del self._commands[stored.command.command_id]
            for keys in self._keys.values():
                keys[:] = [
                    key
                    for key in keys
                    if key.command_id != stored.command.command_id or key.created_at >= keys_before
                ]
        purged = [stored.command.command_id for stored in ended]
        return Purged(command_ids=purged, is_done=len(ended) < limit)

    def _ended(self, state: State, since: StripMark, before: datetime) -> list[_Stored]:
        self._check_open()
        ended = [
            stored
            for stored in self._commands.values()
            if stored.command.state is state
            and stored.command.completed_at is not None
            and stored.command.completed_at < before
            and _mark_of(stored) > since
        ]
        return sorted(ended, key=_mark_of)

    async def strip_bodies(
        self, state: State, since: StripMark, ended_before: datetime, limit: int
    ) -> Stripped:
        """See Store."""
        ended = self._ended(state, since, ended_before)[:limit]
        paths: list[str] = []
        for stored in ended:
            response = stored.response
            body = response.body if isinstance(response, StoredSuccess) else None
            for each in (stored.params, body):
                if isinstance(each, StoredBlob | AwaitedBlob):
                    paths.append(each.path)
            if not isinstance(stored.params, AwaitedBlob):
                stored.params, stored.signature = GONE, None
            if body is not None:
                stored.response = GONE
        mark = _mark_of(ended[-1]) if ended else since
        return Stripped(paths=paths, mark=mark, is_done=len(ended) < limit)

    async def strip_events(
        self, state: State, since: StripMark, ended_before: datetime, limit: int
    ) -> Stripped:
        """See Store."""
        ended = self._ended(state, since, ended_before)[:limit]
        for stored in ended:
            stored.said = _Said()
        mark = _mark_of(ended[-1]) if ended else since
        return Stripped(mark=mark, is_done=len(ended) < limit)

    async def purge_agents(self, before: datetime, limit: int) -> int:
        """See Store."""
        self._check_open()
        unseen = [holder for holder, agent in self._agents.items() if agent.last_seen_at < before]
        for holder in unseen[:limit]:
            del self._agents[holder]
        return len(unseen[:limit])

    async def delete_command(self, command_id: str) -> bool:
        """See Store."""
        self._check_open()
        stored = self._commands.get(command_id)
        if stored is None:
            return False
        if stored.command.state in lifecycle.LIVE:
            raise Conflict(f"the command is {stored.command.state}: cancel it first")
        del self._commands[command_id]
        return True

    async def remove_agent(self, deployment_id: str, agent_id: str) -> bool:
        """See Store."""
        if self._live(
            lambda command: (
                command.state is State.DISPATCHED
                and command.deployment_id == deployment_id
                and command.lease_holder == agent_id
            )
        ):
            raise Conflict("the agent holds a command")
        known = [holder for holder in self._agents if holder[:2] == (deployment_id, agent_id)]
        for holder in known:
            del self._agents[holder]
        return bool(known)

    async def remove_deployment(self, deployment_id: str, now: datetime) -> bool:
        """See Store."""
        if deployment_id not in self._places:
            return False
        if self._live(lambda command: command.deployment_id == deployment_id):
            raise Conflict("a command waits or runs: cancel it first")
        self._check_no_credentials(deployment_id, now)
        self._agents = {
            holder: agent for holder, agent in self._agents.items() if holder[0] != deployment_id
        }
        del self._places[deployment_id]
        return True

    # deployments, agents, tokens

    async def put_deployment(self, deployment: Deployment, now: datetime) -> None:
        """See Store."""
        self._check_open()
        deployment_id, default = deployment.deployment_id, deployment.default_target_id
        known = self._places.get(deployment_id, _Place())
        for target in deployment.targets:
            if not _is_good_id(target.resource_id):
                raise CommandTargetIdInvalid("target id: must not be empty or contain ':'")
        if default in RESERVED_TARGETS:
            raise CommandTargetIdInvalid(f"the default target must not be {default!r}")
        named = {target.resource_id for target in deployment.targets} | known.targets.keys()
        if default is not None and default not in named:
            raise CommandTargetNotFound(f"the default target {default!r} is not registered")
        place = self._places.setdefault(deployment_id, known)
        is_first = not _ordinary(place)
        for target in deployment.targets:
            is_new = target.resource_id not in place.targets
            place.targets[target.resource_id] = target
            if not is_new:
                self._move(deployment_id, target.resource_id, target)
        if is_first and (ordinary := _ordinary(place)):
            self._inherit(deployment_id, place.targets[default or ordinary[0].resource_id])
        place.default = default
        if deployment.push_url is not None or place.push_by is None:
            self._set_push(deployment_id, deployment.push_url, deployment.push_token, now, None)

    async def get_deployment(self, deployment_id: str) -> Deployment | None:
        """See Store."""
        self._check_open()
        place = self._places.get(deployment_id)
        if place is None:
            return None
        return Deployment(
            deployment_id=deployment_id,
            targets=tuple(place.targets.values()),
            default_target_id=place.default,
            push_url=place.push_url,
            push_token=place.push_token,
            push_by=place.push_by,
            circuit=place.circuit,
        )

    async def put_agent(
        self,
        agent_id: str,
        registration: AgentRegistration,
        now: datetime,
        credential: str | None = None,
        quotas: Quotas | None = None,
    ) -> AgentPresence:
        """See Store."""
        self._check_open()
        holder = (registration.deployment_id, agent_id, credential)
        known = self._agents.get(holder)
        if known is None and quotas is not None:
            self._make_room(registration.deployment_id, quotas, now)
        if credential is not None:
            self._agents.pop((registration.deployment_id, agent_id, None), None)
        self._agents[holder] = AgentPresence(
            agent_id=agent_id,
            registration=registration,
            first_seen_at=known.first_seen_at if known else now,
            last_seen_at=max(now, known.last_seen_at) if known else now,
            credential=credential,
        )
        return self._presence(self._agents[holder])

    def _make_room(self, deployment_id: str, quotas: Quotas, now: datetime) -> None:
        used = self.usage(deployment_id)
        if used["agents"] < quotas.max_agents and used["stored_bytes"] < quotas.max_stored_bytes:
            return
        oldest = min(
            (holder for holder in self._agents if holder[0] == deployment_id),
            key=lambda holder: self._agents[holder].last_seen_at,
            default=None,
        )
        silent = timedelta(seconds=SILENT_AGENT_SECONDS)
        if oldest is None or self._agents[oldest].last_seen_at >= now - silent:
            raise QuotaExceeded("the deployment has used up a quota")
        del self._agents[oldest]

    async def touch_agents(self, seen: Mapping[Holder, datetime]) -> None:
        """See Store."""
        self._check_open()
        for holder, at in seen.items():
            agent = self._agents.get(holder)
            if agent is not None and at > agent.last_seen_at:
                self._agents[holder] = msgspec.structs.replace(agent, last_seen_at=at)

    async def list_agents(
        self,
        deployment_id: str | None,
        seen_since: datetime,
        limit: int,
        *,
        with_schemas: bool = False,
        behind: AgentCursor | None = None,
    ) -> AgentPage:
        """See Store."""
        self._check_open()
        found = [
            agent
            for agent in self._agents.values()
            if agent.last_seen_at >= seen_since
            and deployment_id in (None, agent.registration.deployment_id)
        ]
        found.sort(key=_place_in_list)
        if behind is not None:
            place = msgspec.structs.astuple(behind)
            found = [agent for agent in found if _place_in_list(agent) > place]
        page: list[AgentPresence] = []
        page_bytes = 0
        for agent in found:
            if len(page) == limit or page_bytes > PAGE_BYTES:
                last = AgentCursor(*_place_in_list(page[-1])) if page else behind
                return AgentPage(agents=page, next=last)
            if not with_schemas:
                bare, _ = split_schemas(agent.registration)
                agent = msgspec.structs.replace(agent, registration=bare)
            page_bytes += _registered_bytes(agent)
            page.append(self._presence(agent))
        return AgentPage(agents=page)

    async def latest_agents(self, deployment_id: str, limit: int) -> Sequence[AgentPresence]:
        """See Store."""
        page = await self.list_agents(
            deployment_id, datetime.min.replace(tzinfo=UTC), len(self._agents)
        )
        latest = sorted(
            page.agents,
            key=lambda agent: (agent.last_seen_at, _place_in_list(agent)),
            reverse=True,
        )
        return latest[:limit]

    def _presence(self, agent: AgentPresence) -> AgentPresence:
        held = self._live(
            lambda command: (
                command.state is State.DISPATCHED
                and command.lease_holder == agent.agent_id
                and command.deployment_id == agent.registration.deployment_id
                and command.lease_credential == agent.credential
            )
        )
        return msgspec.structs.replace(agent, holding=[stored.command for stored in held])

    async def list_deployments(self) -> Sequence[Deployment]:
        """See Store."""
        found = [await self.get_deployment(name) for name in sorted(self._places)]
        return [each for each in found if each is not None]

    async def register(
        self, deployment_id: str, target: CommandTarget | None, now: datetime
    ) -> None:
        """See Store."""
        self._check_open()
        self._named_by_operator(deployment_id, target)

    async def remove_target(self, deployment_id: str, resource_id: str) -> bool:
        """See Store."""
        self._check_open()
        place = self._places.get(deployment_id)
        if place is None or resource_id not in place.targets:
            return False
        if resource_id == place.default:
            raise Conflict("the target is the default of its deployment")
        if self._live(
            lambda command: (
                command.deployment_id == deployment_id and command.target.resource_id == resource_id
            )
        ):
            raise Conflict("commands wait for the target, or run there")
        del place.targets[resource_id]
        if place.heir == resource_id:
            place.heir = None
        return True

    async def requeue_revoked(self, now: datetime, limit: int) -> Sequence[CommandRecord]:
        """See Store."""
        revoked = await self.revoked_ids()
        held = self._live(
            lambda command: (
                command.state is State.DISPATCHED and command.lease_credential in revoked
            )
        )
        return [self._hand_back(stored, now, costs_attempt=True) for stored in held[:limit]]

    def _named_by_operator(self, deployment_id: str, target: CommandTarget | None) -> None:
        place = self._places.setdefault(deployment_id, _Place())
        if target is not None and target.resource_id not in place.targets:
            self._register(deployment_id, target)

    # the database itself

    async def checkpoint(self) -> None:
        """See Store."""

    async def reusable_bytes(self) -> int:
        """See Store."""
        return 0

    async def recount_usage(self, deployment_id: str) -> None:
        """See Store."""

    async def snapshot(self) -> str:
        """See Store."""
        raise StoreUnavailable("the model has no file")

    async def check(self) -> None:
        """See Store."""
        self._check_open()

    async def close(self) -> None:
        """See Store."""
        self._is_closed = True

    # inside

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _find(self, command_id: str, within: Reach = EVERYTHING) -> _Stored:
        self._check_open()
        stored = self._commands.get(command_id)
        if stored is None or not within.covers(stored.command):
            raise CommandNotFound(f"no such command: {command_id}")
        return stored

    def _find_lease(self, lease_id: str, within: Reach) -> _Stored | None:
        for stored in self._live(lambda command: command.state is State.DISPATCHED):
            command = stored.command
            is_reached = within.covers(command) and within.holds(command)
            if command.lease_id == lease_id and is_reached:
                return stored
        return None

    def _live(self, which: Callable[[CommandRecord], bool]) -> list[_Stored]:
        self._check_open()
        return [
            stored
            for stored in self._commands.values()
            if stored.command.state in lifecycle.LIVE and which(stored.command)
        ]

    def _leases(self, which: Callable[[datetime], bool]) -> list[_Stored]:
        return self._live(
            lambda command: (
                command.state is State.DISPATCHED
                and command.lease_expires_at is not None
                and which(command.lease_expires_at)
            )
        )

    def _set(self, stored: _Stored, **changes: Any) -> CommandRecord:
        stored.command = msgspec.structs.replace(stored.command, **changes)
        return stored.command

    def _expire(self, stored: _Stored, now: datetime) -> CommandRecord:
        return self._set(stored, state=State.EXPIRED, completed_at=now)

    def _end(
        self,
        stored: _Stored,
        state: State,
        response: StoredResponse,
        now: datetime,
        by: str | None = None,
    ) -> CommandRecord:
        stored.response = response
        return self._set(stored, state=state, completed_at=now, completed_by=by)


def _mark_of(stored: _Stored) -> StripMark:
    assert stored.command.completed_at is not None
    return micros(stored.command.completed_at), stored.seq


def _place_in_list(agent: AgentPresence) -> tuple[str, str, str]:
    return (
        agent.registration.deployment_id,
        agent.agent_id,
        agent.credential or "",
    )


def _stored_bytes(stored: _Stored) -> int:
    params, response = stored.params, stored.response
    size = _size(params)
    if isinstance(params, AwaitedBlob):
        is_awaited = stored.command.state is State.PENDING_UPLOAD
        size = max(size, stored.arrived) if is_awaited else stored.arrived
    if isinstance(response, StoredSuccess):
        return size + _size(response.body)
    if isinstance(response, StoredError):
        size += len(msgspec.msgpack.encode((response.code, response.message, response.details)))
    return size


def _size(body: StoredParams) -> int:
    if isinstance(body, StoredInline):
        return len(body.data)
    return 0 if isinstance(body, DamagedBody) else body.size or 0


def _registered_bytes(agent: AgentPresence) -> int:
    bare, schemas = split_schemas(agent.registration)
    return len(encode(bare)) + (len(msgspec.json.encode(schemas)) if schemas else 0)


def _check_holder(command: CommandRecord, lease_id: str | None, within: Reach) -> None:
    if lease_id is None:
        if not within.holds(command):
            raise Forbidden("another credential holds the lease of the command")
    elif lease_id != command.lease_id or not within.holds(command):
        raise LeaseLost("the command has been leased again since, or never under this lease")


def _key_name(new: NewCommand) -> tuple[str, str, str]:
    return new.deployment_id, new.command, new.idempotency_key or ""


def _is_good_id(resource_id: str) -> bool:
    return bool(resource_id) and ":" not in resource_id


def _is_implicit(place: _Place, target: CommandTarget) -> bool:
    """Return True if a target is the implicit one or its heir, registered or not."""
    if target.resource_id in RESERVED_TARGETS:
        return False
    return not _ordinary(place) or target.resource_id == place.heir


def _is_same(key: _Key, place: _Place, target: CommandTarget) -> bool:
    """Return True if a key was made for that target, or for the implicit one before it."""
    if key.is_implicit:
        return _is_implicit(place, target)
    return key.target_id == target.resource_id


def _default_target(place: _Place) -> CommandTarget | None:
    if place.default is not None:
        return place.targets[place.default]
    ordinary = _ordinary(place)
    if not ordinary:
        return IMPLICIT_TARGET
    return ordinary[0] if len(ordinary) == 1 else None


def _ordinary(place: _Place) -> list[CommandTarget]:
    """The registered targets that a create without a target may be for."""
    return [each for each in place.targets.values() if each.resource_id not in RESERVED_TARGETS]


def _target_of_create(place: _Place, new: NewCommand) -> CommandTarget:
    named = new.target_resource_id
    if named is None:
        default = _default_target(place)
        if default is None:
            raise CommandTargetAmbiguous("the deployment has several targets and no default")
        return default
    if ":" in named:
        raise CommandTargetIdInvalid("targetResourceId: must not contain ':'")
    if named in place.targets:
        return place.targets[named]
    if named and new.auto_register and (named in RESERVED_TARGETS or not _ordinary(place)):
        return CommandTarget(resource_id=named, resource_type=ResourceType.DAEMON)
    if named == IMPLICIT_TARGET.resource_id and not _ordinary(place):
        return IMPLICIT_TARGET
    raise CommandTargetNotFound(f"the deployment has no target {named!r}")


def _push_at(stored: _Stored) -> datetime:
    return stored.push_at or stored.command.created_at
