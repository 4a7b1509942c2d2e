"""Commands as senders see them: create, upload, read, cancel, retry.

The services know ports only, no HTTP and no SQL. `within` is the reach of the caller: commands
outside it do not exist for the caller. `base_url` begins the URLs in an answer; it ends in /v1.

A client that goes away ends only the wait of its request (waits.py). No method may be cancelled:
each runs to its end, so that all that is committed is also announced.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final

import msgspec
import structlog

from arc_protocol import lifecycle
from arc_protocol.codec import utc
from arc_protocol.errors import (
    ArcError,
    BadRequest,
    CommandNotFound,
    Conflict,
    InvalidCommand,
    InvalidStateTransition,
    NotFound,
    QuotaExceeded,
)
from arc_protocol.messages.base import IMPLICIT_TARGET, State
from arc_protocol.messages.commands import (
    CommandStatus,
    CreateCommandRequest,
    CreateCommandResponse,
    Payload,
    RetryRequest,
    UploadCompleteResponse,
)
from arc_protocol.messages.waiting import Waiting
from arc_server.ports.clock import Clock
from arc_server.ports.commands import CommandStore
from arc_server.ports.reach import ANY, EVERYTHING, Reach
from arc_server.ports.records import (
    AwaitedBlob,
    CommandRecord,
    CommandWithBodies,
    CommandWithResponse,
    Grant,
    NewCommand,
    StoredBlob,
    StoredInline,
)
from arc_server.service.announcements import Announcements
from arc_server.service.blob_paths import planted_path
from arc_server.service.bounds import bounded, check_command, check_deployment, check_wait
from arc_server.service.descriptions import described
from arc_server.service.identifiers import new_command_id
from arc_server.service.incoming_bodies import IncomingBodies
from arc_server.service.limits import CommandLimits
from arc_server.service.lookup import Lookup, not_found
from arc_server.service.outgoing_bodies import OutgoingBodies
from arc_server.service.push_offers import PushOffer
from arc_server.service.result_waiters import RememberedCommand
from arc_server.service.waiting import NOTHING_TO_SAY, WaitingReasons, WaitVerdict, waits_from
from arc_server.service.waits import Wait

log = structlog.get_logger(__name__)
SHORTEST_PAUSE_SECONDS: Final = 0.05
"""A reason that time should have changed by now is looked at again after this long."""


class CommandService:
    """The service of senders and operators. Safe to share between all requests."""

    def __init__(
        self,
        *,
        store: CommandStore,
        lookup: Lookup,
        incoming: IncomingBodies,
        outgoing: OutgoingBodies,
        clock: Clock,
        announcements: Announcements,
        reasons: WaitingReasons,
        limits: CommandLimits,
    ) -> None:
        self._store = store
        self._lookup = lookup
        self._incoming = incoming
        self._outgoing = outgoing
        self._clock = clock
        self._announcements = announcements
        self._reasons = reasons
        self._limits = limits

    async def create(
        self, request: CreateCommandRequest, *, base_url: str, within: Reach = EVERYTHING
    ) -> CreateCommandResponse:
        """Create a command. If its idempotency key was used before, return the command that this
        key created.

        Raises Forbidden, InvalidCommand (naming the field), PayloadTooLarge, IdempotencyKeyReused
        and the errors of target resolution (`CommandStore.create`).
        """
        check_deployment(request.deployment_id, within)
        check_command(request.command, within)
        max_attempts = bounded(
            "maxAttempts",
            request.max_attempts,
            self._limits.default_max_attempts,
            self._limits.max_attempts,
        )
        deadline = None if request.deadline is None else utc(request.deadline)
        not_before = None if request.not_before is None else utc(request.not_before)
        if deadline is not None and not_before is not None and deadline <= not_before:
            raise InvalidCommand("deadline: must be later than notBefore", field="deadline")
        now = self._clock.now()
        command_id = new_command_id(now)
        params, digest = await self._incoming.accept_params(command_id, request.params)
        return await self._create(
            NewCommand(
                command_id=command_id,
                deployment_id=request.deployment_id,
                target_resource_id=request.target_resource_id,
                command=request.command,
                params=params,
                params_digest=digest,
                max_attempts=max_attempts,
                created_at=now,
                deadline=deadline,
                idempotency_key=request.idempotency_key,
                auto_register=self._limits.registers(within),
                signature=request.signature,
                created_by=within.credential,
                tags=request.tags or None,
                not_before=not_before,
            ),
            base_url=base_url,
        )

    async def retry(
        self,
        command_id: str,
        request: RetryRequest,
        *,
        base_url: str,
        within: Reach = EVERYTHING,
    ) -> CreateCommandResponse:
        """Run a command that has ended again, as a new command. If the idempotency key was used for
        this before, return the command that it created.

        Raises CommandNotFound, InvalidStateTransition for a command that has not ended, Conflict
        when its params cannot be used again, and the errors of `create`.
        """
        await self._lookup.find(command_id, within)
        stored = await self._find_with_bodies(command_id, within)
        old = stored.command
        if old.state not in lifecycle.TERMINAL:
            raise InvalidStateTransition(
                f"the command is {old.state}: it can be run again once it has ended",
                **{"from": old.state, "to": State.PENDING},
            )
        if stored.signature is not None:
            raise Conflict(
                "the command is signed, and hosts accept a signature once: its sender has to sign"
                " and send it anew",
                command_id=command_id,
            )
        now = self._clock.now()
        deadline = None if request.deadline is None else utc(request.deadline)
        if deadline is None and old.deadline is not None:
            deadline = now + (old.deadline - old.created_at)
        new_id = new_command_id(now)
        named = None if old.target == IMPLICIT_TARGET else old.target.resource_id
        return await self._create(
            NewCommand(
                command_id=new_id,
                deployment_id=old.deployment_id,
                target_resource_id=named,
                command=old.command,
                params=await self._incoming.accept_again(new_id, stored.params),
                params_digest=hashlib.sha256(b"retry:" + command_id.encode()).digest(),
                max_attempts=old.max_attempts,
                created_at=now,
                deadline=deadline,
                idempotency_key=request.idempotency_key,
                auto_register=False,
                created_by=within.credential,
                retry_of=command_id,
                tags=old.tags,
            ),
            base_url=base_url,
        )

    async def _create(self, new: NewCommand, *, base_url: str) -> CreateCommandResponse:
        """Store a new command and announce it. Its params are discarded if it is not stored."""
        command_id, params = new.command_id, new.params
        outlet = self._announcements.push_outlet
        results = self._announcements.results
        results.remember_live(
            command_id, RememberedCommand(new.deployment_id, new.deadline, new.created_at)
        )
        foretold = None
        is_delayed = lifecycle.is_delayed(new.not_before, new.created_at)
        is_ready = not (is_delayed or isinstance(params, AwaitedBlob))
        if is_ready:
            foretold = self._announcements.work.foretell(new.deployment_id, new.target_resource_id)
        with PushOffer(outlet if is_ready else None, new.deployment_id, new.created_at) as offer:
            try:
                created = await self._store.create(
                    msgspec.structs.replace(new, push_lease=offer.lease, quotas=self._limits.quotas)
                )
            except ArcError as error:
                results.wake(command_id)
                if isinstance(error, BadRequest | NotFound | Conflict | QuotaExceeded):
                    await self._incoming.discard(params)
                raise
            command = created.command
            if created.is_replay:
                results.wake(command_id)  # it was not stored
                await self._incoming.discard(params)
            else:
                self._announcements.announce_created(command, foretold, is_delayed=is_delayed)
                if not isinstance(params, AwaitedBlob) and command.state is State.DISPATCHED:
                    await offer.send(Grant(command=command, params=params, signature=new.signature))
                await self._incoming.seal(params)
        upload = None
        if command.state is State.PENDING_UPLOAD and isinstance(created.params, AwaitedBlob):
            upload = self._outgoing.params_upload(created.params, base_url, new.created_by)
        return CreateCommandResponse(
            command_id=command.command_id,
            state=command.state,
            inline_allowed_up_to=self._limits.inline_bytes,
            next="poll" if upload is None else "upload",
            storage_upload=upload,
            created=not created.is_replay,
            is_replay=created.is_replay or None,
        )

    async def upload_complete(
        self, command_id: str, size: int, *, within: Reach = EVERYTHING
    ) -> UploadCompleteResponse:
        """Make a command ready whose params have been uploaded.

        Raises CommandNotFound, InvalidStateTransition unless PENDING_UPLOAD, InvalidCommand when
        the blob is missing or of another size; the state stays then.
        """
        stored = await self._find_with_bodies(command_id, within)
        state = stored.command.state
        if state is not State.PENDING_UPLOAD or not isinstance(stored.params, AwaitedBlob):
            # A process that died may have marked the upload and not sealed it.
            await self._incoming.seal(stored.params)
            raise InvalidStateTransition(
                f"the command is {state}, not waiting for an upload",
                **{"from": state, "to": State.PENDING},
            )
        path = stored.params.path
        params = await self._incoming.accept_upload(path, size)
        outlet, now = self._announcements.push_outlet, self._clock.now()
        with PushOffer(outlet, stored.command.deployment_id, now) as offer:
            try:
                command = await self._store.mark_uploaded(command_id, params, now, offer.lease)
            except InvalidStateTransition:
                self._announcements.results.wake(command_id)  # it may just have expired
                raise
            is_delayed = lifecycle.is_delayed(command.not_before, now)
            self._announcements.announce_created(command, None, is_delayed=is_delayed)
            if command.state is State.DISPATCHED:
                await offer.send(Grant(command=command, params=params, signature=stored.signature))
        await self._incoming.seal(params)
        if isinstance(params, StoredInline):
            await self._incoming.discard(StoredBlob(path=path, size=size))
        return UploadCompleteResponse(command_id=command_id, state=command.state)

    async def status(
        self,
        command_id: str,
        *,
        base_url: str,
        wait_seconds: float = 0,
        known_tag: str | None = None,
        wait: Wait | None = None,
        within: Reach = EVERYTHING,
    ) -> CommandStatus:
        """Return a command's status; with `wait_seconds`, once it has ended or time is up.

        With `known_tag` also once the command waits for another reason than the one of this tag.
        Raises CommandNotFound, InvalidCommand (a wait out of bounds), and the error that `wait` is
        ended with.
        """
        check_wait(wait_seconds)
        if wait_seconds == 0 or self._announcements.is_closed:
            found = await self._lookup.find(command_id, within)
        elif known_tag is None:
            found = await self._ended(command_id, wait_seconds, wait, within)
        else:
            return await self._changed(command_id, base_url, wait_seconds, known_tag, wait, within)
        verdict = await self._verdict(found.command)
        return self._status(found, base_url, within.credential, verdict.waiting)

    async def _ended(
        self, command_id: str, seconds: float, wait: Wait | None, within: Reach
    ) -> CommandWithResponse:
        """Return a command once it has ended or time is up."""
        with self._announcements.results.waiter(command_id, wait) as waiter:
            found = None
            if not self._has_no_result(command_id, within):
                found = await self._lookup.find(command_id, within)
            if found is None or found.command.state not in lifecycle.TERMINAL:
                ended = await waiter.sleep(seconds)
                found = ended or await self._lookup.find(command_id, within)
            return found

    async def _changed(
        self,
        command_id: str,
        base_url: str,
        seconds: float,
        known_tag: str,
        wait: Wait | None,
        within: Reach,
    ) -> CommandStatus:
        """Return a command's status once it has ended, waits for another reason, or time is up."""
        results = self._announcements.results
        clock = asyncio.get_running_loop().time  # the waiter's own
        ends_at = clock() + seconds
        while True:
            left = ends_at - clock()
            pause = self._young_seconds(command_id, within) if left > 0 else 0.0
            with results.waiter(command_id, wait, hears_reasons=pause <= 0) as waiter:
                if pause <= 0:
                    found = await self._lookup.find(command_id, within)
                    waiter.follow(found.command.deployment_id)
                    verdict = await self._verdict(found.command)
                    is_over = found.command.state in lifecycle.TERMINAL or left <= 0
                    if is_over or verdict.tag != known_tag or self._announcements.is_closed:
                        return self._status(found, base_url, within.credential, verdict.waiting)
                    pause = left
                    if verdict.changes_at is not None:
                        pause = (verdict.changes_at - self._clock.now()).total_seconds()
                ended = await waiter.sleep(min(left, max(pause, SHORTEST_PAUSE_SECONDS)))
            if ended is not None:
                return self._status(ended, base_url, within.credential)

    async def cancel(self, command_id: str, *, within: Reach = EVERYTHING) -> CommandStatus:
        """Cancel a command: at once if it has no holder, else through its holder.

        A command that has ended stays as it is. Raises CommandNotFound.
        """
        await self._lookup.find(command_id, within)
        outcome = await self._store.cancel(command_id, self._clock.now(), within.credential)
        self._announcements.announce_cancel(outcome.command)
        return described(outcome.command)

    async def payload(self, command_id: str, *, base_url: str, within: Reach) -> Payload:
        """Return the bodies that are stored for a command, in any state. Raises CommandNotFound."""
        stored = await self._find_with_bodies(command_id, within)
        by = within.credential
        params = self._outgoing.params(stored.params, base_url, by)
        response = self._outgoing.response(stored.response, base_url, by)
        if params is None and response is None:
            raise CommandNotFound(f"nothing is stored for {command_id}", command_id=command_id)
        return Payload(command_id=command_id, params=params, response=response)

    async def write_payload(
        self, command_id: str, payload: Payload, *, within: Reach = EVERYTHING
    ) -> None:
        """Replace the bodies that are stored for a live command, for an admin. Its state stays.

        Raises CommandNotFound, InvalidCommand, InvalidStateTransition for one that has ended.
        """
        found = await self._lookup.find(command_id, within)
        if found.command.state in lifecycle.TERMINAL:
            raise InvalidStateTransition(
                f"the command is {found.command.state}: what it ended with does not change",
                **{"from": found.command.state, "to": found.command.state},
            )
        params = response = None
        if payload.params is not None:
            path = planted_path(command_id)
            params = await self._incoming.accept(payload.params, "params", path)
        if payload.response is not None:
            response = await self._incoming.accept_response(found.command, payload.response)
        await self._store.write_payload(command_id, params, response)
        log.info("command.payload_replaced", command_id=command_id, by=within.credential)

    async def _find_with_bodies(self, command_id: str, within: Reach) -> CommandWithBodies:
        stored = await self._store.get_with_bodies(command_id)
        if stored is None or not within.covers(stored.command):
            raise not_found(command_id)
        return stored

    def _has_no_result(self, command_id: str, within: Reach) -> bool:
        """Return True if that is known for sure without a look into the database."""
        live = self._announcements.results.live(command_id)
        if live is None or within.commands is not ANY:
            return False
        if not within.allows_deployment(live.deployment_id):
            return False
        return live.deadline is None or not lifecycle.is_overdue(live.deadline, self._clock.now())

    def _young_seconds(self, command_id: str, within: Reach) -> float:
        """Return for how long a command has not begun to wait, as far as memory tells.

        Most commands end in that time, before the database is asked for a reason.
        """
        live = self._announcements.results.live(command_id)
        if live is None or not self._has_no_result(command_id, within):
            return 0.0
        return (waits_from(live.created_at) - self._clock.now()).total_seconds()

    async def _verdict(self, command: CommandRecord) -> WaitVerdict:
        """Return why a command waits. Raises StoreUnavailable."""
        if command.state in lifecycle.TERMINAL:
            return NOTHING_TO_SAY
        begins_at = waits_from(command.created_at)
        if self._clock.now() < begins_at:
            return WaitVerdict(None, begins_at)
        return await self._reasons.of(command)

    def _status(
        self,
        found: CommandWithResponse,
        base_url: str,
        by: str | None,
        waiting: Waiting | None = None,
    ) -> CommandStatus:
        response = None
        if found.command.state in lifecycle.TERMINAL:
            response = self._outgoing.response(found.response, base_url, by)
        return described(found.command, response, waiting=waiting)
