"""Leases as their holders see them: lease, renew, release, and submit responses.

`within` and `base_url` mean what they mean to the service of commands (commands.py), and no method
may be cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec
import structlog

from arc_protocol import lifecycle
from arc_protocol.codec import utc
from arc_protocol.errors import (
    ArcError,
    BadRequest,
    Conflict,
    Forbidden,
    LeaseNotFound,
    NotFound,
)
from arc_protocol.messages.base import DEFAULT_LEASE_SECONDS
from arc_protocol.messages.bodies import CommandResponse
from arc_protocol.messages.errors import error_body
from arc_protocol.messages.leases import (
    LeaseInfo,
    LeaseRequest,
    LeaseResponse,
    RefusedResponse,
    RenewedLease,
    RenewRequest,
    RenewResponse,
    RespondRequest,
    RespondResponse,
)
from arc_server.ports.clock import Clock
from arc_server.ports.leases import LeaseStore
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.ports.records import (
    CommandRecord,
    Epoch,
    Grant,
    Granted,
    LeasedResponse,
    LeaseQuery,
    StoredSuccess,
)
from arc_server.service.agents import AgentService
from arc_server.service.announcements import Announcements
from arc_server.service.bounds import check_agent, check_deployment, check_wait, clamped
from arc_server.service.envelopes import Envelopes
from arc_server.service.identifiers import FreshLeaseIds
from arc_server.service.incoming_bodies import IncomingBodies
from arc_server.service.limits import CommandLimits
from arc_server.service.lookup import Lookup
from arc_server.service.waiting import WaitingReasons
from arc_server.service.waits import Wait

log = structlog.get_logger(__name__)

LEGACY_USER_AGENT: Final = "alien-agent"
"""Begins the `User-Agent` of the 1.x agent (docs/protocol.md, Leases)."""


BUILT_AT_ONCE: Final = 64
"""Envelopes that are built before other requests get their turn: a thousand take the event loop
for 60 ms."""


class LeaseService:
    """The service of holders. Safe to share between all requests."""

    def __init__(
        self,
        *,
        store: LeaseStore,
        lookup: Lookup,
        incoming: IncomingBodies,
        envelopes: Envelopes,
        clock: Clock,
        announcements: Announcements,
        limits: CommandLimits,
        agents: AgentService,
        epoch: Epoch,
        reasons: WaitingReasons,
    ) -> None:
        self._store = store
        self._lookup = lookup
        self._incoming = incoming
        self._envelopes = envelopes
        self._clock = clock
        self._announcements = announcements
        self._limits = limits
        self._agents = agents
        self._epoch = epoch
        self._reasons = reasons

    async def lease(
        self,
        request: LeaseRequest,
        *,
        base_url: str,
        user_agent: str = "",
        wait: Wait | None = None,
        within: Reach = EVERYTHING,
    ) -> LeaseResponse:
        """Lease ready commands; with `waitSeconds`, once there is one or time is up.

        Raises Forbidden, InvalidCommand (naming the field), and the error that `wait` is ended
        with; nothing stays leased then.
        """
        check_deployment(request.deployment_id, within)
        if within.target is not None and request.target is None:
            request = msgspec.structs.replace(request, target=within.target)
        check_agent(request.target, request.agent_id, within)
        is_legacy = user_agent.startswith(LEGACY_USER_AGENT)
        count = clamped("maxLeases", request.max_leases, 1, self._limits.max_leases)
        count = 1 if is_legacy else count
        seconds = lifecycle.granted_seconds(
            self._lease_seconds(request.lease_seconds), is_legacy_agent=is_legacy
        )
        target_id = None if request.target is None else request.target.resource_id
        wait_seconds = request.wait_seconds or 0
        check_wait(wait_seconds)
        began = self._clock.monotonic()
        waited = 0.0
        deployment_id, agent_id = request.deployment_id, request.agent_id
        holder = None if agent_id is None else (deployment_id, agent_id, within.credential)
        wait = wait or Wait()
        work = self._announcements.work
        with work.waiter(deployment_id, target_id, holder, wait) as waiter:
            wait.check()
            self._agents.mark_polled(deployment_id, request.target, agent_id, within.credential)
            while True:
                wait.check()
                waiter.arm()
                leases = await self._lease_now(request, count, seconds, waited, base_url, within)
                waiter.looked([lease.command_id for lease in leases])
                if wait.error is not None:
                    await self.return_undelivered([lease.lease_id for lease in leases])
                    raise wait.error
                cancelled = work.take_cancels(holder) if holder else []
                left = wait_seconds - (self._clock.monotonic() - began)
                if leases or cancelled or left <= 0 or self._announcements.is_closed:
                    return LeaseResponse(
                        leases=leases, cancelled=cancelled or None, epoch=self._epoch.id
                    )
                is_woken = await waiter.sleep(left)
                if not is_woken or waiter.is_dismissed or self._announcements.is_closed:
                    return LeaseResponse(leases=[], epoch=self._epoch.id)
                waited = self._clock.monotonic() - began

    async def renew(self, request: RenewRequest, *, within: Reach = EVERYTHING) -> RenewResponse:
        """Extend leases that are still the latest of their commands. Raises InvalidCommand."""
        seconds = self._lease_seconds(request.lease_seconds)
        for waiting in request.waiting or ():
            if waiting.until is not None:
                utc(waiting.until)
        outcome = await self._store.renew(request.lease_ids, seconds, self._clock.now(), within)
        for command in outcome.renewed:
            if command.lease_holder is not None and command.lease_holder == request.agent_id:
                self._agents.mark_seen(
                    (command.deployment_id, command.lease_holder, command.lease_credential)
                )
        kept: list[RenewedLease] = []
        if outcome.kept_until is not None:
            left = max(0.0, (outcome.kept_until - self._clock.now()).total_seconds())
            kept = [
                RenewedLease(
                    lease_id=lease_id, lease_expires_at=outcome.kept_until, lease_seconds=left
                )
                for lease_id in outcome.kept
            ]
        self._reasons.report(outcome.renewed, request.waiting)
        return RenewResponse(
            epoch=self._epoch.id,
            renewed=[
                RenewedLease(
                    lease_id=command.lease_id or "",
                    lease_expires_at=command.lease_expires_at or command.created_at,
                    lease_seconds=seconds,
                )
                for command in outcome.renewed
            ]
            + kept,
            lost=list(outcome.lost),
            cancelled=[
                command.lease_id or "" for command in outcome.renewed if command.cancel_requested
            ],
        )

    async def release(
        self, lease_id: str, *, costs_attempt: bool = True, within: Reach = EVERYTHING
    ) -> None:
        """Release a lease without a response. Raises LeaseNotFound."""
        command = await self._store.release(
            lease_id, self._clock.now(), costs_attempt=costs_attempt, within=within
        )
        self._announcements.announce(command)

    async def return_undelivered(self, lease_ids: Sequence[str]) -> None:
        """Release leases that could not be delivered; it costs their commands no attempt."""
        for lease_id in lease_ids:
            await self._return(lease_id, costs_attempt=False)

    async def submit_response(
        self,
        command_id: str,
        response: CommandResponse,
        *,
        lease_id: str | None = None,
        within: Reach = EVERYTHING,
    ) -> None:
        """End a command with a response, once. A repeat, and one that comes late, does nothing.

        Raises CommandNotFound, LeaseLost, Forbidden (no lease named, and another credential holds
        it), InvalidStateTransition, InvalidCommand (bad base64, or a body in storage that is not
        there).
        """
        command: CommandRecord | None = None
        if not self._incoming.is_small(response):
            found = await self._lookup.find(command_id, within)
            command = found.command
            if not self._epoch.has_undone(lease_id, command):
                within.check_lease(
                    command, lease_id
                )  # before the body: a stale holder's is not there
            if command.state in lifecycle.TERMINAL:
                # A process that died may have completed the command and not sealed its body.
                if isinstance(found.response, StoredSuccess):
                    await self._incoming.seal_response(found.response)
                return
        stored = await self._incoming.accept_response(command, response, lease_id)
        try:
            outcome = await self._store.complete(
                command_id, lease_id, stored, self._clock.now(), within
            )
        except (BadRequest, Forbidden, NotFound, Conflict):
            await self._incoming.withdraw(response, stored)
            raise
        if self._announcements.announce_completion(outcome, stored):
            await self._incoming.seal_response(stored)
        else:
            await self._incoming.withdraw(response, stored)

    async def submit_responses(
        self, request: RespondRequest, *, within: Reach = EVERYTHING
    ) -> RespondResponse:
        """Submit several responses, and return those that were refused. Small ones share a write.

        Raises StoreUnavailable when it is not known of any whether it was taken.
        """
        refused: list[RefusedResponse] = []
        small: list[LeasedResponse] = []
        for given in request.responses:
            try:
                if self._incoming.is_small(given.response):
                    stored = await self._incoming.accept_response(None, given.response)
                    small.append(LeasedResponse(given.command_id, given.lease_id, stored))
                else:
                    await self.submit_response(
                        given.command_id, given.response, lease_id=given.lease_id, within=within
                    )
            except ArcError as error:
                refused.append(_refusal(given.lease_id, error))
        if not small:
            return RespondResponse(refused=refused)
        outcomes = await self._store.complete_all(small, self._clock.now(), within)
        for given, outcome in zip(small, outcomes, strict=True):
            if isinstance(outcome, ArcError):
                refused.append(_refusal(given.lease_id, outcome))
            else:
                self._announcements.announce_completion(outcome, given.response)
        return RespondResponse(refused=refused)

    def _lease_seconds(self, given: int | None) -> int:
        """Return for how long a lease is granted. Raises InvalidCommand."""
        # Public receivers ask for the time-out of their worker and 60 s, and end on a 400.
        return clamped("leaseSeconds", given, DEFAULT_LEASE_SECONDS, self._limits.max_lease_seconds)

    async def _lease_now(
        self,
        request: LeaseRequest,
        count: int,
        seconds: float,
        waited: float,
        base_url: str,
        within: Reach,
    ) -> list[LeaseInfo]:
        granted = await self._look(
            LeaseQuery(
                deployment_id=request.deployment_id,
                target=request.target,
                lease_ids=FreshLeaseIds(count, self._epoch.id),
                lease_seconds=seconds,
                holder=request.agent_id,
                credential=within.credential,
                auto_register=self._limits.registers(within),
                max_targets=self._limits.max_targets,
                max_bytes=self._limits.max_answer_bytes,
            )
        )
        leases: list[LeaseInfo] = []
        for number, grant in enumerate(granted.grants, 1):
            if number % BUILT_AT_ONCE == 0:
                await asyncio.sleep(0)
            self._announcements.results.wake_for_reasons(grant.command.command_id)
            try:
                leases.append(self._lease_info(grant, seconds + waited, base_url))
            except Exception:
                log.exception("lease.unbuildable", command_id=grant.command.command_id)
                # It costs an attempt: or it would come back for ever.
                await self._return(grant.command.lease_id or "", costs_attempt=True)
        return leases

    async def _look(self, query: LeaseQuery) -> Granted:
        granted = await self._store.lease(query, self._clock.now())
        self._announcements.announce_swept(granted.ended)
        if granted.inherited and query.target is not None:
            self._announcements.work.wake(query.deployment_id, query.target.resource_id)
        if granted.type_mismatch and query.target is not None:
            log.warning(
                "lease.resource_type_mismatch",
                deployment_id=query.deployment_id,
                target=query.target.resource_id,
                resource_type=str(query.target.resource_type),
            )
        if granted.is_full and query.target is not None:
            log.warning(
                "lease.too_many_targets",
                deployment_id=query.deployment_id,
                target=query.target.resource_id,
                most=query.max_targets,
            )
        if granted.is_unknown:
            log.warning(
                "lease.target_unknown",
                deployment_id=query.deployment_id,
                target=None if query.target is None else query.target.resource_id,
            )
        return granted

    async def _return(self, lease_id: str, *, costs_attempt: bool) -> None:
        """Release a lease that its holder does not know of. If that fails, the lease lapses."""
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
        self._announcements.announce(command)

    def _lease_info(self, grant: Grant, seconds: float, base_url: str) -> LeaseInfo:
        """Return a lease that lasts for `seconds`, counted from before the poll that waited."""
        command = grant.command
        return LeaseInfo(
            lease_id=command.lease_id or "",
            lease_expires_at=command.lease_expires_at or command.created_at,
            command_id=command.command_id,
            attempt=command.attempt,
            envelope=self._envelopes.of(grant, base_url),
            lease_seconds=seconds,
            max_attempts=command.max_attempts,
        )


def _refusal(lease_id: str, error: ArcError) -> RefusedResponse:
    return RefusedResponse(lease_id=lease_id, error=error_body(error))
