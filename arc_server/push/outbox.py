"""The outbox sends commands to push targets. They stand in the database and survive a restart.

A push is a lease whose holder is the push target. The command is leased before it is sent, for the
time that sending may take: by the transaction that creates it if the outbox is free to send it at
once, else when its turn has come. Once accepted, the lease is renewed for the time that a response
may take. A definite rejection ends the command as FAILED. After any other outcome the lease is
released, and the command is sent again after a back-off, until it has no attempts or time left.
Every send of a command carries one lease, since its holder does not change.

One receiver cannot hold the others up: each deployment has a limit of its own, what is free goes to
those first to which the fewest commands are being sent, and each has a circuit (circuits.py), which
is stored when it opens and closes, so that it outlasts a restart.
"""

from __future__ import annotations

import asyncio
import random
from datetime import datetime, timedelta

import structlog

from arc_protocol import lifecycle
from arc_protocol.errors import ArcError, Unavailable
from arc_server.ports.clock import Clock
from arc_server.ports.meter import NO_METER, ServerMeter
from arc_server.ports.pushes import Dispatcher, PushStore
from arc_server.ports.records import Grant, PushLease, PushOutcome, StoredError
from arc_server.push.circuits import CircuitLimits, Circuits
from arc_server.service.announcements import Announcements
from arc_server.service.envelopes import Envelopes
from arc_server.service.identifiers import new_lease_id

log = structlog.get_logger(__name__)


class PushLimits(CircuitLimits, frozen=True, kw_only=True):
    """Limits of the outbox; the configuration keys of section `push` have these names."""

    timeout_seconds: float = 10
    """The time that one send may take."""
    response_seconds: float = 330
    """The time that an accepted command may take before it is sent again."""
    backoff_base_seconds: float = 5
    """With it five attempts, the default of a command, last for 40 s on average."""
    backoff_cap_seconds: float = 60
    concurrency: int = 32
    retry_store_seconds: float = 1
    """The pause after the database was unavailable."""


class Outbox:
    """The loop that sends what is due, several commands at a time."""

    def __init__(
        self,
        *,
        store: PushStore,
        envelopes: Envelopes,
        announcements: Announcements,
        dispatcher: Dispatcher,
        clock: Clock,
        limits: PushLimits,
        base_url: str,
        epoch: str = "0",
        meter: ServerMeter = NO_METER,
    ) -> None:
        self._meter = meter
        self._epoch = epoch
        self._store = store
        self._envelopes = envelopes
        self._announcements = announcements
        self._dispatcher = dispatcher
        self._clock = clock
        self._limits = limits
        self._base_url = base_url
        self._free = limits.concurrency
        self._sending: asyncio.TaskGroup | None = None
        self._jitter = random.Random()  # noqa: S311 (spreads a herd, keeps no secret)
        self._circuits = Circuits(limits, self._jitter)
        self._pushed: frozenset[str] = frozenset()
        """The deployments that are pushed to, as last read."""
        self._is_leasing = False
        self._is_stale = True

    async def run(self) -> None:
        """Send what is due and wait until more is, until cancelled."""
        async with asyncio.TaskGroup() as sending:
            self._sending = sending
            try:
                await self._push_until_closed(sending)
            finally:
                self._announcements.push_outlet = self._sending = None

    @property
    def sending(self) -> int:
        """Return the number of commands that are being sent."""
        return self._limits.concurrency - self._free

    @property
    def open_circuits(self) -> int:
        """Return the number of deployments whose circuit is not closed."""
        return self._circuits.not_closed

    def refresh(self) -> None:
        """Look at all deployments again: an operator has changed where one is pushed to."""
        self._is_stale = True
        self._announcements.push_ready()

    def offer(self, deployment_id: str, now: datetime) -> PushLease | None:
        """Return a lease to dispatch a new command under; None if it has to wait for its turn."""
        if self._free <= 0 or self._is_leasing or self._announcements.is_closed:
            return None
        if deployment_id not in self._pushed or self._circuits.room(deployment_id, now) <= 0:
            return None
        self._begin(deployment_id)
        return PushLease(new_lease_id(self._epoch), now + timedelta(seconds=self._send_seconds))

    def withdraw(self, deployment_id: str) -> None:
        """Give the place of an offered lease back: nothing was dispatched under it."""
        self._end(deployment_id)

    async def send(self, grant: Grant) -> None:
        """Start to send a command that was dispatched under an offered lease.

        Release its lease, at no cost of an attempt, if nothing is sent any more. Never raises for
        what the store does.
        """
        if self._sending is not None and not self._announcements.is_closed:
            self._sending.create_task(self._send(grant))
            return
        command = grant.command
        self._end(command.deployment_id)
        assert command.lease_id is not None
        try:
            await self._store.release(command.lease_id, self._clock.now(), costs_attempt=False)
        except ArcError as error:
            log.warning("push.unsettled", command_id=command.command_id, reason=error.message)

    @property
    def _send_seconds(self) -> float:
        """Return the length of a lease that lasts for one send."""
        return self._limits.timeout_seconds + lifecycle.SUBMIT_MARGIN_SECONDS

    def _begin(self, deployment_id: str) -> None:
        """Count a send until `_end`."""
        self._free -= 1
        self._circuits.begin(deployment_id)

    def _end(self, deployment_id: str) -> None:
        """Count a send no longer, and let the loop use its place."""
        self._free += 1
        self._circuits.end(deployment_id)
        self._announcements.push_ready()

    async def _push_until_closed(self, sending: asyncio.TaskGroup) -> None:
        while not self._announcements.is_closed:
            try:
                if self._is_stale:
                    self._is_stale = False
                    await self._look_again()
                self._announcements.push_outlet = self
                await self._announcements.wait_for_push(await self._push_due(sending))
            except Unavailable as error:
                log.warning("push.store_away", reason=error.message)
                await self._clock.sleep(self._limits.retry_store_seconds)
            except Exception:
                log.exception("push.failing")
                await self._clock.sleep(self._limits.retry_store_seconds)

    async def _look_again(self) -> None:
        """Read which deployments are pushed to, and their circuits. Raises StoreUnavailable."""
        try:
            self._circuits.load(await self._store.list_circuits())
            self._pushed = frozenset(await self._store.list_pushed())
        except BaseException:
            self._is_stale = True
            raise

    async def _push_due(self, sending: asyncio.TaskGroup) -> float | None:
        """Start every send that is due. Return the seconds until the next one; None without one."""
        while self._free > 0:
            now = self._clock.now()
            self._is_leasing = True  # what is free may be taken by the answer
            try:
                granted = await self._store.lease_push(
                    [new_lease_id(self._epoch) for _ in range(self._free)],
                    self._send_seconds,
                    now,
                    rooms=self._circuits.rooms(now),
                    per_deployment=self._limits.per_deployment,
                    sending=self._circuits.sending(),
                )
            finally:
                self._is_leasing = False
            self._announcements.announce_swept(granted.ended)
            for grant in granted.grants:
                self._begin(grant.command.deployment_id)
                sending.create_task(self._send(grant))
            if not granted.grants:
                break
        else:
            return None  # the end of a send wakes the loop
        now = self._clock.now()
        full = [name for name, room in self._circuits.rooms(now).items() if room <= 0]
        next_at = await self._store.next_push_at(full)
        probe_at = self._circuits.next_probe_at(now)
        times = [at for at in (next_at, probe_at) if at is not None]
        if not times:
            return None
        return max(0.0, (min(times) - self._clock.now()).total_seconds())

    async def _send(self, grant: Grant) -> None:
        command_id = grant.command.command_id
        try:
            await self._send_once(grant)
        except ArcError as error:
            # The lease lapses, and the sweeper puts the command back: it is sent again then.
            log.warning("push.unsettled", command_id=command_id, reason=error.message)
        except Exception:
            log.exception("push.failed", command_id=command_id)
        finally:
            self._end(grant.command.deployment_id)

    async def _send_once(self, grant: Grant) -> None:
        command = grant.command
        lease_id = command.lease_id
        assert lease_id is not None
        deployment = await self._store.get_deployment(command.deployment_id)
        if deployment is None or deployment.push_url is None:
            # An operator has just taken the push URL away: agents get the command.
            now = self._clock.now()
            released = await self._store.release(lease_id, now, costs_attempt=False)
            self._announcements.announce(released)
            return
        outcome = await self._dispatcher.push(deployment, self._envelopes.of(grant, self._base_url))
        self._meter.pushed(_name_of(outcome))
        now = self._clock.now()
        await self._turn_circuit(command.deployment_id, outcome, now)
        facts = {"command_id": command.command_id, "attempt": command.attempt}
        if outcome.accepted:
            log.info("push.accepted", **facts)
            await self._store.renew([lease_id], self._limits.response_seconds, now)
            return
        if outcome.is_definite:
            log.warning("push.rejected", reason=outcome.reason, **facts)
            error = StoredError(
                code=lifecycle.DELIVERY_FAILED,
                message=f"the push target refused the command: {outcome.reason}",
            )
            ended = await self._store.complete(command.command_id, lease_id, error, now)
            if ended.changed:
                self._announcements.announce(ended.command)
            return
        pause = lifecycle.full_jitter(
            command.attempt - 1,
            base_seconds=self._limits.backoff_base_seconds,
            cap_seconds=self._limits.backoff_cap_seconds,
            source=self._jitter,
        )
        log.info("push.postponed", reason=outcome.reason, seconds=round(pause, 3), **facts)
        released = await self._store.release(
            lease_id, now, costs_attempt=True, push_after=now + timedelta(seconds=pause)
        )
        self._announcements.announce(released)

    async def _turn_circuit(self, deployment_id: str, outcome: PushOutcome, now: datetime) -> None:
        """Open or close the circuit of a deployment, as the outcome of a send tells.

        A circuit that cannot be stored turns for this process alone.
        """
        try:
            if outcome.accepted or outcome.is_definite:
                if self._circuits.answered(deployment_id):
                    log.info("push.circuit_closed", deployment_id=deployment_id)
                    await self._store.close_circuit(deployment_id)
                return
            circuit = self._circuits.failed(deployment_id, outcome.reason, now)
            if circuit is not None:
                log.warning(
                    "push.circuit_open",
                    deployment_id=deployment_id,
                    reason=circuit.reason,
                    times=circuit.times,
                    retry_at=circuit.retry_at,
                )
                await self._store.put_circuit(circuit)
        except ArcError as error:
            log.warning("push.circuit_not_stored", reason=error.message)


def _name_of(outcome: PushOutcome) -> str:
    """Return how an outcome is counted. Its reason is no name: there is no end to reasons."""
    if outcome.accepted:
        return "accepted"
    return "rejected" if outcome.is_definite else "failed"
