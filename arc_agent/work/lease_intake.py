"""LeaseIntake takes in the answer to a lease request, each lease for itself.

A lease goes to the runner, to the response that waits for it, or back to the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Final

import structlog

from arc_agent.guard.pause import Pause
from arc_agent.host.clock import MonotonicClock
from arc_agent.host.pulse import Pulse
from arc_agent.jobs.job import Job, ReplyTo, allowed
from arc_agent.jobs.lease_table import HeldLease, LeaseTable
from arc_agent.jobs.outcome import Failed
from arc_agent.jobs.responses import message_of
from arc_agent.jobs.spool import Spool
from arc_agent.jobs.spool_rows import Entry
from arc_agent.net.lease_calls import BrokenLease, LeaseAnswer, release
from arc_agent.net.server import Server
from arc_agent.work.live_config import LiveConfig
from arc_agent.work.runner import Runner
from arc_protocol.errors import InvalidEnvelope
from arc_protocol.messages.leases import LeaseInfo
from arc_runtime.network.allowed_hosts import HostRefused

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_MOST_RELEASED: Final = 100
"""Leases beyond those that were asked for: so many are released one by one, others lapse."""


class LeaseIntake:
    """Takes leases in. Lives in the main loop."""

    def __init__(
        self,
        *,
        live: LiveConfig,
        server: Server,
        leases: LeaseTable,
        spool: Spool,
        runner: Runner,
        pause: Pause,
        on_cancelled: Callable[[str], None],
        clock: MonotonicClock,
    ) -> None:
        """Give `on_cancelled` the id of each lease whose command the sender cancelled."""
        self._live = live
        self._server = server
        self._leases = leases
        self._spool = spool
        self._runner = runner
        self._pause = pause
        self._on_cancelled = on_cancelled
        self._clock = clock
        self._lease_url = server.connection.url("commands", "leases")
        self._promised = 0
        """The leases of this answer that are still taken on, if need be without a slot: a command
        that waited may have taken one meanwhile."""
        self._is_draining = False
        self.count = 0
        """The number of leases that have come."""

    def stop(self) -> None:
        """Take on nothing more: every further lease is released."""
        self._is_draining = True

    async def take(
        self,
        group: asyncio.TaskGroup,
        answer: LeaseAnswer,
        *,
        asked_at: float,
        asked_for: int,
        pulse: Pulse,
    ) -> None:
        """Take in an answer. Leases that are taken on run in `group`."""
        self._promised = asked_for
        state = self._server.state
        if answer.leases or answer.cancelled:
            state.knows_extensions = answer.shows_extensions
        for lease_id in answer.cancelled:
            self._on_cancelled(lease_id)
        most = asked_for + _MOST_RELEASED
        for broken in answer.broken[:most]:
            log.error("lease.unreadable", command_id=broken.command_id, reason=broken.reason)
            if not await self._refuse(broken) and broken.lease_id is not None:
                await self._release(broken.lease_id, "unreadable")
        if len(answer.leases) > most:
            log.error("lease.too_many", asked=asked_for, got=len(answer.leases))
        for lease in answer.leases[:most]:
            pulse.within(self._live.config.server.request_timeout_seconds)
            await self._take_one(group, self._job(lease, answer, asked_at))

    async def _take_one(self, group: asyncio.TaskGroup, job: Job) -> None:
        """Run a lease, or release it when it cannot be run here now."""
        lease = job.lease
        entry = self._spool.of_command(lease.command_id)
        if self._is_draining or self._pause.is_on:
            await self._release(lease.lease_id, "drain")
        elif entry is not None:
            await self._rebind(entry, job)
        elif self._is_held(lease):
            log.warning("lease.duplicate", command_id=lease.command_id, attempt=lease.attempt)
            await self._release(lease.lease_id, "already_running")
        elif self._runner.free < 1 and self._promised < 1:
            await self._release(lease.lease_id, "no_capacity")
        else:
            self._promised = max(0, self._promised - 1)
            self._runner.start(group, job)

    def _is_held(self, lease: LeaseInfo) -> bool:
        """Return True if the lease or its command is at work here."""
        by_command = self._leases.of_command(lease.command_id)
        return by_command is not None or self._leases.get(lease.lease_id) is not None

    def _job(self, lease: LeaseInfo, answer: LeaseAnswer, asked_at: float) -> Job:
        """Return the job of a lease, with its times on the agent's clock."""
        self.count += 1
        deadline = lease.envelope.deadline
        return Job(
            lease=lease,
            lease_url=self._lease_url,
            asked_at=asked_at,
            seconds=lease.lease_seconds or float(self._live.config.lease.seconds),
            deadline_at=None if deadline is None else self._on_clock(deadline, answer.server_now),
            directory=self._spool.data_dir.temporary / f"run-{self.count}",
        )

    def _on_clock(self, deadline: datetime, server_now: float | None) -> float:
        """Return a deadline on the agent's clock, by the server's time where it is known."""
        now = server_now if server_now is not None else datetime.now(tz=deadline.tzinfo).timestamp()
        return self._clock() + (deadline.timestamp() - now)

    async def _release(self, lease_id: str, reason: str) -> None:
        """Give a lease back."""
        await release(self._server.connection, lease_id, reason)

    async def _refuse(self, broken: BrokenLease) -> bool:
        """Answer an unreadable lease with INVALID_ENVELOPE. Return False when that cannot be."""
        if broken.submit_url is None or broken.command_id is None or broken.lease_id is None:
            return False
        try:
            submit_url = allowed(self._lease_url, broken.submit_url, self._server.transfer.check)
        except (InvalidEnvelope, HostRefused):
            return False
        to = ReplyTo(
            command_id=broken.command_id,
            lease_id=broken.lease_id,
            command=broken.command or "",
            attempt=1,
            submit_url=submit_url,
        )
        await self._spool.put(to, message=message_of(Failed(InvalidEnvelope.code, broken.reason)))
        return True

    async def _rebind(self, entry: Entry, job: Job) -> None:
        """Deliver a response that waits in the spool under the new lease of its command."""
        lease = job.lease
        try:
            to = ReplyTo.of(job, self._server.transfer.check)
        except InvalidEnvelope:
            to = ReplyTo.by_token(job)
        held = HeldLease.of(job)
        held.finish()
        self._leases.remove(entry.to.lease_id)
        self._leases.add(held)
        await self._spool.rebind(entry, to)
        log.info("response.rebound", command_id=lease.command_id, attempt=lease.attempt)
