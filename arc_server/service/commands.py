"""CommandService: one method per operation of the lifecycle.

Knows the ports only, no HTTP and no SQL. `within` is the deployment that the caller's token is
bound to, None for one that is bound to none: commands and leases of other deployments are as if
they did not exist. `base_url` is what URLs in answers begin with; it ends in /v1.

A caller that goes away ends only the wait of its request (waits.py). No method may be cancelled:
each runs to its end, so that all that is committed is also announced.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
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
    LeaseLost,
    LeaseNotFound,
    NotFound,
)
from arc_protocol.messages.base import DEFAULT_LEASE_SECONDS, MAX_WAIT_SECONDS, PROTOCOL, State
from arc_protocol.messages.bodies import CommandResponse, InlineBody
from arc_protocol.messages.commands import (
    CommandList,
    CommandStatus,
    CreateCommandRequest,
    CreateCommandResponse,
    Payload,
    UploadCompleteResponse,
)
from arc_protocol.messages.errors import error_body
from arc_protocol.messages.leases import (
    Envelope,
    LeaseInfo,
    LeaseRequest,
    LeaseResponse,
    RefusedResponse,
    RenewedLease,
    RenewRequest,
    RenewResponse,
    RespondRequest,
    RespondResponse,
    ResponseHandling,
)
from arc_server.ports.blobs import BlobStore
from arc_server.ports.clock import Clock
from arc_server.ports.links import ResponseLinks
from arc_server.ports.records import (
    AwaitedBlob,
    Command,
    CommandFilter,
    CommandWithResponse,
    Completion,
    Grant,
    Granted,
    LeaseQuery,
    NewCommand,
    StoredBlob,
    StoredInline,
    StoredResponse,
    StoredSuccess,
    Submission,
)
from arc_server.ports.store import Store
from arc_server.service.agents import AgentService, check_deployment
from arc_server.service.bodies import Bodies, directory
from arc_server.service.identifiers import FreshLeaseIds, new_command_id
from arc_server.service.limits import CommandLimits
from arc_server.service.waits import Wait
from arc_server.service.wakeups import Wakeups

log = structlog.get_logger(__name__)

LEGACY_USER_AGENT: Final = "alien-agent"
"""How the `User-Agent` of the 1.x agent begins (protocol.md 1.3)."""


class CommandService:
    """The lifecycle of commands. Built on ports; safe to share between all requests."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: BlobStore,
        links: ResponseLinks,
        clock: Clock,
        wakeups: Wakeups,
        limits: CommandLimits,
        agents: AgentService,
    ) -> None:
        self.agents: Final = agents
        self._store = store
        self._bodies = Bodies(blobs, clock, limits)
        self._links = links
        self._clock = clock
        self._wakeups = wakeups
        self._limits = limits

    # sender side

    async def create(
        self, request: CreateCommandRequest, *, base_url: str, within: str | None = None
    ) -> CreateCommandResponse:
        """Store a command, or answer the one that an earlier create with the same key made.

        Raises Forbidden, InvalidCommand (naming the field), PayloadTooLarge, IdempotencyKeyReused
        and what targets can be wrong about (`Store.create`).
        """
        check_deployment(request.deployment_id, within)
        max_attempts = self._bounded(
            "maxAttempts",
            request.max_attempts,
            self._limits.default_max_attempts,
            self._limits.max_attempts,
        )
        deadline = None if request.deadline is None else utc(request.deadline)
        command_id = new_command_id(self._clock.now())
        params, digest = await self._bodies.accept_params(command_id, request.params)
        self._wakeups.began(command_id, request.deployment_id, deadline)
        try:
            created = await self._store.create(
                NewCommand(
                    command_id=command_id,
                    deployment_id=request.deployment_id,
                    target_resource_id=request.target_resource_id,
                    command=request.command,
                    params=params,
                    params_digest=digest,
                    max_attempts=max_attempts,
                    created_at=self._clock.now(),
                    deadline=deadline,
                    idempotency_key=request.idempotency_key,
                    auto_register=self._limits.auto_register,
                    signature=request.signature,
                )
            )
        except ArcError as error:
            self._wakeups.finished(command_id)
            if isinstance(error, BadRequest | NotFound | Conflict):
                await self._bodies.discard(params)
            raise
        command = created.command
        if created.is_replay:
            self._wakeups.finished(command_id)  # it was not stored
            await self._bodies.discard(params)
        else:
            self._announce(command)
            await self._bodies.seal(params)
        upload = None
        if command.state is State.PENDING_UPLOAD and isinstance(created.params, AwaitedBlob):
            upload = self._bodies.upload(created.params.path, base_url)
        return CreateCommandResponse(
            command_id=command.command_id,
            state=command.state,
            inline_allowed_up_to=self._limits.inline_bytes,
            next="poll" if upload is None else "upload",
            storage_upload=upload,
            is_replay=created.is_replay or None,
        )

    async def upload_complete(
        self, command_id: str, size: int, *, within: str | None = None
    ) -> UploadCompleteResponse:
        """The params are there: make the command ready.

        Raises CommandNotFound, InvalidStateTransition unless PENDING_UPLOAD, InvalidCommand when
        the blob is missing or of another size; the state stays then.
        """
        stored = await self._store.get_with_bodies(command_id)
        if stored is None or not _is_within(stored.command, within):
            raise CommandNotFound(f"no such command: {command_id}", command_id=command_id)
        state = stored.command.state
        if state is not State.PENDING_UPLOAD or not isinstance(stored.params, AwaitedBlob):
            await self._bodies.seal(stored.params)  # a process that died may not have come to it
            raise InvalidStateTransition(
                f"the command is {state}, not waiting for an upload",
                **{"from": state, "to": State.PENDING},
            )
        path = stored.params.path
        params = await self._bodies.accept_upload(path, size)
        try:
            command = await self._store.mark_uploaded(command_id, params, self._clock.now())
        except InvalidStateTransition:
            self._wakeups.finished(command_id)  # it may just have expired
            raise
        self._announce(command)
        await self._bodies.seal(params)
        if isinstance(params, StoredInline):
            await self._bodies.discard(StoredBlob(path=path, size=size))
        return UploadCompleteResponse(command_id=command_id, state=command.state)

    async def status(
        self,
        command_id: str,
        *,
        base_url: str,
        wait_seconds: float = 0,
        wait: Wait | None = None,
        within: str | None = None,
    ) -> CommandStatus:
        """Where a command stands; with `wait_seconds`, as soon as it is terminal or time is up.

        Raises CommandNotFound, InvalidCommand (a wait out of bounds), and the error that `wait` is
        ended with.
        """
        check_wait(wait_seconds)
        if wait_seconds == 0 or self._wakeups.is_closed:
            found = await self._find(command_id, within)
            return self._status(found, base_url)
        with self._wakeups.for_result(command_id, wait) as waiter:
            found = None
            if not self._has_no_result(command_id, within):
                found = await self._find(command_id, within)
            if found is None or found.command.state not in lifecycle.TERMINAL:
                ended = await waiter.sleep(wait_seconds)
                found = ended or await self._find(command_id, within)
        return self._status(found, base_url)

    async def list(
        self, which: CommandFilter, *, cursor: str | None, limit: int | None, within: str | None
    ) -> CommandList:
        """Commands, newest first. Raises InvalidCommand for a bad cursor or limit, Forbidden."""
        if within is not None:
            check_deployment(which.deployment_id or within, within)
            which = msgspec.structs.replace(which, deployment_id=within)
        page = await self._store.list(
            which,
            _read_cursor(cursor),
            self._bounded("limit", limit, self._limits.list_page, self._limits.max_list_page),
        )
        return CommandList(
            commands=[_describe(command, None) for command in page.commands],
            cursor=None if page.next_before is None else str(page.next_before),
        )

    async def cancel(self, command_id: str, *, within: str | None = None) -> CommandStatus:
        """Stop a command: at once if nobody has it, else through its holder.

        Raises CommandNotFound. A terminal command stays as it is.
        """
        await self._find(command_id, within)
        outcome = await self._store.cancel(command_id, self._clock.now())
        command = outcome.command
        if command.state in lifecycle.TERMINAL:
            self._announce(command)
        elif command.state is State.DISPATCHED and command.lease_holder and command.lease_id:
            self._wakeups.cancel_requested(
                command.deployment_id, command.lease_holder, command.lease_id
            )
        return _describe(command, None)

    async def payload(self, command_id: str, *, base_url: str, within: str | None) -> Payload:
        """What is stored for a command, in any state. Raises CommandNotFound."""
        stored = await self._store.get_with_bodies(command_id)
        if stored is None or not _is_within(stored.command, within):
            raise CommandNotFound(f"no such command: {command_id}", command_id=command_id)
        params = self._bodies.present_params(stored.params, base_url)
        response = self._bodies.present_response(stored.response, base_url)
        if params is None and response is None:
            raise CommandNotFound(f"nothing is stored for {command_id}", command_id=command_id)
        return Payload(command_id=command_id, params=params, response=response)

    async def write_payload(self, command_id: str, payload: Payload) -> None:
        """The operator's back door: replace stored bodies, change no state.

        Raises CommandNotFound, InvalidCommand.
        """
        found = await self._find(command_id, None)
        params = response = None
        if payload.params is not None:
            path = f"{directory(command_id)}/planted/{secrets.token_hex(8)}"
            params = await self._bodies.accept(payload.params, "params", path)
        if payload.response is not None:
            response = await self._bodies.accept_response(found.command, payload.response)
        await self._store.write_payload(command_id, params, response)

    # holder side

    async def submit_response(
        self,
        command_id: str,
        response: CommandResponse,
        *,
        lease_id: str | None = None,
        within: str | None = None,
    ) -> None:
        """Take a response, once. Answers a repeat, and one that comes after the end, the same way.

        Raises CommandNotFound, LeaseLost, InvalidStateTransition, InvalidCommand (bad base64, or a
        body in storage that is not there).
        """
        command: Command | None = None
        if within is not None or not self._bodies.is_small(response):
            found = await self._find(command_id, within)
            command = found.command
            if command.state in lifecycle.TERMINAL:
                if isinstance(found.response, StoredSuccess):  # see upload_complete
                    await self._bodies.seal_response(found.response)
                return
            _check_lease(command, lease_id)  # before the body: a stale holder's is not there
        stored = await self._bodies.accept_response(command, response, lease_id)
        try:
            outcome = await self._store.complete(command_id, lease_id, stored, self._clock.now())
        except (BadRequest, NotFound, Conflict):
            await self._bodies.withdraw(response, stored)
            raise
        if self._completed(outcome, stored):
            await self._bodies.seal_response(stored)
        else:
            await self._bodies.withdraw(response, stored)

    async def submit_responses(
        self, request: RespondRequest, *, within: str | None = None
    ) -> RespondResponse:
        """`submit_response` for each: what was refused, and why. The short ones share a write.

        Raises StoreUnavailable when it is not known of any whether it was taken.
        """
        refused: list[RefusedResponse] = []
        short: list[Submission] = []
        for given in request.responses:
            try:
                if self._bodies.is_small(given.response):
                    stored = await self._bodies.accept_response(None, given.response)
                    short.append(Submission(given.command_id, given.lease_id, stored))
                else:
                    await self.submit_response(
                        given.command_id, given.response, lease_id=given.lease_id, within=within
                    )
            except ArcError as error:
                refused.append(_refusal(given.lease_id, error))
        if not short:
            return RespondResponse(refused=refused)
        outcomes = await self._store.complete_all(short, self._clock.now(), within)
        for given, outcome in zip(short, outcomes, strict=True):
            if isinstance(outcome, ArcError):
                refused.append(_refusal(given.lease_id, outcome))
            else:
                self._completed(outcome, given.response)
        return RespondResponse(refused=refused)

    async def lease(
        self,
        request: LeaseRequest,
        *,
        base_url: str,
        user_agent: str = "",
        wait: Wait | None = None,
        within: str | None = None,
    ) -> LeaseResponse:
        """Hand out ready commands; with `waitSeconds`, as soon as there is one or time is up.

        Raises Forbidden, InvalidCommand (naming the field), and the error that `wait` is ended
        with; nothing stays leased then.
        """
        check_deployment(request.deployment_id, within)
        is_legacy = user_agent.startswith(LEGACY_USER_AGENT)
        limits = self._limits
        count = self._bounded("maxLeases", request.max_leases, 1, limits.max_leases)
        seconds = lifecycle.granted_seconds(
            self._bounded(
                "leaseSeconds",
                request.lease_seconds,
                DEFAULT_LEASE_SECONDS,
                limits.max_lease_seconds,
            ),
            is_legacy_agent=is_legacy,
        )
        count = 1 if is_legacy else count
        target_id = None if request.target is None else request.target.resource_id
        wait_seconds = request.wait_seconds or 0
        check_wait(wait_seconds)
        began = self._clock.monotonic()
        waited = 0.0
        deployment_id, agent_id = request.deployment_id, request.agent_id
        wait = wait or Wait()
        with self._wakeups.for_work(deployment_id, target_id, agent_id, wait) as waiter:
            while True:
                wait.check()
                self.agents.polled(deployment_id, agent_id)
                waiter.arm()
                leases = await self._lease_now(request, count, seconds, waited, base_url)
                waiter.looked()
                if wait.error is not None:
                    await self.return_undelivered([lease.lease_id for lease in leases])
                    raise wait.error
                cancelled = self._wakeups.take_cancels(deployment_id, agent_id) if agent_id else []
                left = wait_seconds - (self._clock.monotonic() - began)
                if leases or cancelled or left <= 0 or self._wakeups.is_closed:
                    return LeaseResponse(leases=leases, cancelled=cancelled or None)
                is_woken = await waiter.sleep(left)
                if not is_woken or waiter.is_dismissed or self._wakeups.is_closed:
                    return LeaseResponse(leases=[])
                waited = self._clock.monotonic() - began

    async def renew(self, request: RenewRequest, *, within: str | None = None) -> RenewResponse:
        """Extend leases that are still the latest of their commands. Raises InvalidCommand."""
        seconds = self._bounded(
            "leaseSeconds",
            request.lease_seconds,
            DEFAULT_LEASE_SECONDS,
            self._limits.max_lease_seconds,
        )
        outcome = await self._store.renew(request.lease_ids, seconds, self._clock.now(), within)
        for command in outcome.renewed:
            if command.lease_holder is not None and command.lease_holder == request.agent_id:
                self.agents.heard_of(command.deployment_id, command.lease_holder)
        return RenewResponse(
            renewed=[
                RenewedLease(
                    lease_id=command.lease_id or "",
                    lease_expires_at=command.lease_expires_at or command.created_at,
                    lease_seconds=seconds,
                )
                for command in outcome.renewed
            ],
            lost=list(outcome.lost),
            cancelled=[
                command.lease_id or "" for command in outcome.renewed if command.cancel_requested
            ],
        )

    async def release(
        self, lease_id: str, *, costs_attempt: bool = True, within: str | None = None
    ) -> None:
        """Give a lease back without a response. Raises LeaseNotFound."""
        command = await self._store.release(
            lease_id, self._clock.now(), costs_attempt=costs_attempt, deployment_id=within
        )
        self._announce(command)

    async def return_undelivered(self, lease_ids: Sequence[str]) -> None:
        """Take back leases whose holder went away before it could hear of them."""
        for lease_id in lease_ids:
            await self._hand_back(lease_id, costs_attempt=False)

    # for the sweeper, the dispatcher and the composition root

    def envelope(self, grant: Grant, base_url: str) -> Envelope:
        """A leased command as its holder gets it, its URLs minted afresh."""
        command = grant.command
        lease_id = command.lease_id
        if lease_id is None:
            raise InvalidStateTransition("the command has no lease", command_id=command.command_id)
        until = self._clock.now() + timedelta(seconds=self._limits.response_url_seconds)
        params = self._bodies.present_params(grant.params, base_url)
        return Envelope(
            protocol=PROTOCOL,
            deployment_id=command.deployment_id,
            target=command.target,
            command_id=command.command_id,
            attempt=command.attempt,
            deadline=command.deadline,
            command=command.command,
            params=params or InlineBody.of(b""),
            response_handling=ResponseHandling(
                max_inline_bytes=self._limits.inline_bytes,
                submit_response_url=self._links.response_url(
                    base_url, command.command_id, lease_id, until
                ),
                storage_upload_request=self._bodies.response_upload(command, base_url),
            ),
            signature=grant.signature,
        )

    def announce(self, commands: Sequence[Command]) -> None:
        """Wake who waits for these commands: agents for ready ones, senders for ended ones.

        The holder of a lease that ran out did not renew, so a poll of its that still waits may be
        a connection with nobody behind it: it is ended, or the command went straight back there.
        """
        for command in commands:
            if command.state is State.PENDING and command.lease_holder is not None:
                self._wakeups.dismiss(command.deployment_id, command.lease_holder)
            self._announce(command)

    # inside

    async def _find(self, command_id: str, within: str | None) -> CommandWithResponse:
        found = await self._store.get(command_id)
        if found is None or not _is_within(found.command, within):
            raise CommandNotFound(f"no such command: {command_id}", command_id=command_id)
        command = found.command
        now = self._clock.now()
        if command.state not in lifecycle.TERMINAL and lifecycle.is_overdue(command.deadline, now):
            await self._expire(now)
            found = await self._store.get(command_id) or found
        return found

    def _has_no_result(self, command_id: str, within: str | None) -> bool:
        """Whether that is known for sure, without a look into the database."""
        live = self._wakeups.live(command_id)
        if live is None or (within is not None and live.deployment_id != within):
            return False
        return live.deadline is None or not lifecycle.is_overdue(live.deadline, self._clock.now())

    async def _expire(self, now: datetime) -> None:
        self.announce(await self._store.expire_due(now, self._limits.max_list_page))

    async def _lease_now(
        self, request: LeaseRequest, count: int, seconds: float, waited: float, base_url: str
    ) -> list[LeaseInfo]:
        query = LeaseQuery(
            deployment_id=request.deployment_id,
            target=request.target,
            lease_ids=FreshLeaseIds(count),
            lease_seconds=seconds,
            holder=request.agent_id,
            auto_register=self._limits.auto_register,
        )
        granted = await self._look(query)
        leases: list[LeaseInfo] = []
        for grant in granted.grants:
            try:
                leases.append(self._lease_info(grant, seconds + waited, base_url))
            except Exception:
                log.exception("lease.unbuildable", command_id=grant.command.command_id)
                # It costs an attempt: or it would come back for ever.
                await self._hand_back(grant.command.lease_id or "", costs_attempt=True)
        return leases

    async def _look(self, query: LeaseQuery) -> Granted:
        granted = await self._store.lease(query, self._clock.now())
        self.announce(granted.ended)
        if granted.inherited and query.target is not None:
            self._wakeups.work_ready(query.deployment_id, query.target.resource_id)
        if granted.type_mismatch and query.target is not None:
            log.warning(
                "lease.resource_type_mismatch",
                deployment_id=query.deployment_id,
                target=query.target.resource_id,
                resource_type=str(query.target.resource_type),
            )
        return granted

    async def _hand_back(self, lease_id: str, *, costs_attempt: bool) -> None:
        """End a lease that its holder never heard of. If that fails, it lapses."""
        try:
            command = await self._store.release(
                lease_id, self._clock.now(), costs_attempt=costs_attempt
            )
        except LeaseNotFound:
            return
        except ArcError as error:
            log.warning("lease.not_returned", reason=error.message)
            return
        log.info("lease.returned_undelivered", command_id=command.command_id)
        self._announce(command)

    def _lease_info(self, grant: Grant, seconds: float, base_url: str) -> LeaseInfo:
        """`seconds` is how long the lease lasts, counted from before the request that waited."""
        command = grant.command
        envelope = self.envelope(grant, base_url)
        return LeaseInfo(
            lease_id=command.lease_id or "",
            lease_expires_at=command.lease_expires_at or command.created_at,
            command_id=command.command_id,
            attempt=command.attempt,
            envelope=envelope,
            lease_seconds=seconds,
            max_attempts=command.max_attempts,
        )

    def _completed(self, outcome: Completion, response: StoredResponse) -> bool:
        """Announce what came of a response; whether it is what the command ended with."""
        is_kept = outcome.changed and outcome.command.state is not State.EXPIRED
        if outcome.changed:
            ended = CommandWithResponse(
                command=outcome.command, response=response if is_kept else None
            )
            self._wakeups.finished(outcome.command.command_id, ended)
        return is_kept

    def _announce(self, command: Command) -> None:
        """Never fails, and asks nobody: what a command ended with, its waiters look up."""
        if command.state in lifecycle.TERMINAL:
            self._wakeups.finished(command.command_id)
        elif command.state is not State.PENDING:
            return
        elif command.is_push:
            self._wakeups.push_ready()
        else:
            self._wakeups.work_ready(command.deployment_id, command.target.resource_id)

    def _bounded(self, field: str, given: int | None, default: int, most: int) -> int:
        if given is None:
            return default
        if not 1 <= given <= most:
            raise InvalidCommand(f"{field}: must be from 1 to {most}", field=field)
        return given

    def _status(self, found: CommandWithResponse, base_url: str) -> CommandStatus:
        response = None
        if found.command.state in lifecycle.TERMINAL:
            response = self._bodies.present_response(found.response, base_url)
        return _describe(found.command, response)


def check_wait(seconds: float) -> None:
    """Raise InvalidCommand for a wait out of bounds."""
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise InvalidCommand(
            f"waitSeconds: must be from 0 to {MAX_WAIT_SECONDS}", field="waitSeconds"
        )


def _check_lease(command: Command, lease_id: str | None) -> None:
    """Raise LeaseLost when the lease that is named is not the command's latest."""
    if lease_id is not None and lease_id != command.lease_id:
        raise LeaseLost("the command has been leased again", command_id=command.command_id)


def _is_within(command: Command, within: str | None) -> bool:
    return within is None or command.deployment_id == within


def _describe(command: Command, response: CommandResponse | None) -> CommandStatus:
    return CommandStatus(
        command_id=command.command_id,
        state=command.state,
        attempt=command.attempt,
        target=command.target,
        response=response,
        deployment_id=command.deployment_id,
        command=command.command,
        created_at=command.created_at,
        dispatched_at=command.dispatched_at,
        completed_at=command.completed_at,
        deadline=command.deadline,
        max_attempts=command.max_attempts,
        cancel_requested=command.cancel_requested or None,
    )


def _refusal(lease_id: str, error: ArcError) -> RefusedResponse:
    return RefusedResponse(lease_id=lease_id, error=error_body(error))


def _read_cursor(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
        raise InvalidCommand("cursor: not one that a list has answered", field="cursor")
    return int(cursor)
