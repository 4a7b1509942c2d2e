"""The life of a command in the model: created, read, leased, ended, deleted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from arc_protocol import lifecycle
from arc_protocol.errors import (
    ArcError,
    CommandTargetAmbiguous,
    CommandTargetIdInvalid,
    CommandTargetNotFound,
    Conflict,
    DeploymentNotFound,
    IdempotencyKeyReused,
    InvalidCommand,
    InvalidStateTransition,
    LeaseLost,
    LeaseNotFound,
    QuotaExceeded,
    StoreUnavailable,
)
from arc_protocol.messages.base import IMPLICIT_TARGET, CommandTarget, State
from arc_protocol.messages.events import EventsRequest, RecordedLine
from arc_server.ports.events import LATE_SECONDS, most_stored_with_events
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.ports.records import (
    DEFAULT_QUOTAS,
    AwaitedBlob,
    CommandRecord,
    CommandWithBodies,
    CommandWithResponse,
    Completion,
    Created,
    EventPage,
    Granted,
    LeasedResponse,
    LeaseQuery,
    NewCommand,
    PastLease,
    PushLease,
    Quotas,
    Renewal,
    StoredBody,
    StoredResponse,
    StoredSuccess,
)
from tests.model.records import (
    Key,
    Place,
    StoredCommand,
    check_holder,
    default_target,
    is_good_id,
    is_implicit_target,
    is_same,
    name_of_key,
    ordinary_targets,
    push_time_from,
    target_of_create,
    waits_unqueued,
)
from tests.model.state import CANCELLED, ModelState


class ModelCommands(ModelState):
    """Creates, leases, ends and deletes commands."""

    async def create(self, new: NewCommand) -> Created:
        """See Store."""
        self._check_open()
        place = self._places.get(new.deployment_id)
        if place is None and not new.auto_register:
            raise DeploymentNotFound(f"no such deployment: {new.deployment_id}")
        place = place or Place()
        target = error = None
        try:
            target = target_of_create(place, new)
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
        stored = StoredCommand(
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
                tags=new.tags,
                not_before=new.not_before,
            ),
            params=new.params,
            signature=new.signature,
            ready_order=number,
        )
        if waits_unqueued(stored.command, new.created_at):
            stored.ready_order = None
        stored.push_at = push_time_from(stored.command, new.created_at)
        self._commands[new.command_id] = stored
        is_delayed = lifecycle.is_delayed(new.not_before, new.created_at)
        if new.push_lease and not is_awaited and not is_delayed:
            self._push(stored, new.push_lease, new.created_at)
        if new.idempotency_key is not None:
            self._keys.setdefault(name_of_key(new), []).append(
                Key(
                    names_target=new.target_resource_id is not None,
                    is_implicit=is_implicit_target(place, target),
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

    def _find_key(self, new: NewCommand, place: Place, target: CommandTarget | None) -> Key | None:
        keys = self._keys.get(name_of_key(new), [])
        if new.target_resource_id is None:
            for key in keys:
                if not key.names_target:
                    return key
        for key in keys:
            if target is not None and is_same(key, place, target):
                return key
        return None

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
                waits = waits_unqueued(stored.command, now)
                stored.ready_order = None if waits else self._next_number()
                stored.push_at = push_time_from(stored.command, now)
                ready = self._set(stored, state=State.PENDING)
                if push_lease and not lifecycle.is_delayed(ready.not_before, now):
                    return self._push(stored, push_lease, now)
                return ready
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

    async def write_payload(
        self, command_id: str, params: StoredBody | None, response: StoredResponse | None
    ) -> None:
        """See Store."""
        stored = self._find(command_id)
        if stored.command.state in lifecycle.TERMINAL:
            raise InvalidStateTransition("what a command ended with does not change")
        stored.params = params or stored.params
        stored.response = response or stored.response

    async def lease(self, query: LeaseQuery, now: datetime) -> Granted:
        """See Store."""
        self._check_open()
        place = self._places.get(query.deployment_id)
        if place is None and not query.auto_register:
            return Granted(grants=(), is_unknown=True)
        place = place or self._places.setdefault(query.deployment_id, Place())
        named, inherited = query.target, False
        if named is None:
            target = default_target(place)
        elif named.resource_id in place.targets:
            target = place.targets[named.resource_id]
        elif query.auto_register:
            target = named if is_good_id(named.resource_id) else None
            if target is not None and len(place.targets) >= query.max_targets:
                return Granted(grants=(), is_full=True)
            inherited = target is not None and self._register(query.deployment_id, named)
        elif ordinary_targets(place) or named.resource_id != IMPLICIT_TARGET.resource_id:
            return Granted(grants=(), is_unknown=True)
        else:
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
                and stored.ready_order is not None
                and stored.command.deployment_id == query.deployment_id
                and stored.command.target.resource_id == target.resource_id
            ),
            key=lambda stored: stored.ready_order or 0,
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
        how = lifecycle.LeaseEnd.RELEASED if costs_attempt else lifecycle.LeaseEnd.RETURNED
        return self._hand_back(
            stored, now, costs_attempt=costs_attempt, how=how, push_after=push_after
        )

    async def past_leases(self, command_id: str) -> Sequence[PastLease]:
        """See Store."""
        self._check_open()
        stored = self._commands.get(command_id)
        return [] if stored is None else stored.past[-100:]

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
        check_holder(command, lease_id, within)
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
        self,
        command_id: str,
        request: EventsRequest,
        now: datetime,
        keep: int,
        quotas: Quotas = DEFAULT_QUOTAS,
        within: Reach = EVERYTHING,
    ) -> CommandRecord:
        """See Store."""
        stored = self._find(command_id, within)
        command = stored.command
        check_holder(command, request.lease_id, within)
        ended_at = command.completed_at
        if ended_at is not None and now - ended_at > timedelta(seconds=LATE_SECONDS):
            raise LeaseLost("the command ended too long ago")
        used = self.usage(command.deployment_id)["stored_bytes"]
        has_room = used < most_stored_with_events(quotas)
        said = stored.said
        if said.lease_id != request.lease_id:
            said.lease_id, said.last_number = request.lease_id, 0
            said.dropped, said.unsent = said.dropped + said.unsent, 0
            said.progress = None
        for line in request.lines:
            if line.number > said.last_number and not has_room:
                said.dropped += 1
            elif line.number > said.last_number:
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
        if request.progress is not None:
            text = request.progress.text if has_room else None
            said.progress = msgspec.structs.replace(request.progress, text=text)
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
