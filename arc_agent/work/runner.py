"""The runner holds every lease that is at work, from its arrival to its response in the spool.

Each lease runs in a task of its own. The runner knows how many more may come, and stops the runs
when the agent drains or an operator ends them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import structlog

from arc_agent.guard.gate import Gate
from arc_agent.guard.signatures import Signatures
from arc_agent.guard.turns import KeyedTurns, Turns
from arc_agent.host.clock import MonotonicClock
from arc_agent.jobs.job import Job
from arc_agent.jobs.lease_table import End, HeldLease, LeaseTable
from arc_agent.jobs.outcome import NO_COST, Dropped, Failed, GivenBack, Outcome, Succeeded
from arc_agent.jobs.responses import message_of, name_of, what_counts
from arc_agent.jobs.result_files import StoredBody
from arc_agent.jobs.run_journal import RunJournal
from arc_agent.jobs.spool import Spool
from arc_agent.net.connection import NoContact
from arc_agent.net.lease_calls import release, renew
from arc_agent.net.server import Server
from arc_agent.work.live_config import LiveConfig
from arc_agent.work.meter import Meter
from arc_agent.work.run_steps import LeaseRun, RunSteps
from arc_agent.work.run_time import RunTime
from arc_protocol.messages.leases import RenewRequest, RenewResponse
from arc_runtime.failpoints import hit

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

MAX_LEASE_SECONDS: Final = 3_600
"""The longest lease that servers grant unless they are configured otherwise."""
_WORTH_SECONDS: Final = 5.0
"""A command that may come again sooner is given back at once."""
_LAST_RENEWAL_SECONDS: Final = 5.0


class Runner:
    """Runs leases, up to `max_concurrent` at a time. Lives in the main loop."""

    def __init__(
        self,
        *,
        steps: RunSteps,
        live: LiveConfig,
        server: Server,
        leases: LeaseTable,
        spool: Spool,
        journal: RunJournal,
        gate: Gate,
        signatures: Signatures,
        handler_turns: KeyedTurns,
        slots: Turns,
        meter: Meter,
        clock: MonotonicClock,
    ) -> None:
        """Limit running handlers by `slots`, less those that are abandoned."""
        self._steps = steps
        self._live = live
        self._server = server
        self._leases = leases
        self._spool = spool
        self._journal = journal
        self._gate = gate
        self._signatures = signatures
        self._handler_turns = handler_turns
        self._slots = slots
        self._meter = meter
        self._clock = clock
        self._runs: dict[str, LeaseRun] = {}
        self._abandoned: dict[str, asyncio.Task[Any]] = {}
        """Handlers that ignored their cancellation, by lease id."""
        self._changed = asyncio.Event()
        self.done = 0
        """The number of commands that have ended in any way."""

    @property
    def free(self) -> int:
        """Return how many more leases may be taken on now."""
        return 0 if self._handler_turns.is_full else self._slots.free

    @property
    def abandoned(self) -> int:
        """Return how many handlers ignored their cancellation and still run."""
        return len(self._abandoned)

    @property
    def running(self) -> int:
        """Return how many leases are at work."""
        return len(self._runs)

    def start(self, group: asyncio.TaskGroup, job: Job) -> None:
        """Take a lease on: it is held, renewed and run from here."""
        lease = job.lease
        held = HeldLease.of(job)
        run = LeaseRun(job, held, RunTime(job, held, self._clock, self._server.state))
        self._runs[lease.lease_id] = run
        self._leases.add(held)
        self._slots.try_take(lease.lease_id)
        group.create_task(self._run(run), name=f"run:{lease.lease_id}")

    async def drain(self, seconds: float) -> None:
        """Let running handlers finish for so long, then stop the rest.

        Commands whose handlers have not started are released at once.
        """
        for lease_id, run in list(self._runs.items()):
            if self._gate.is_waiting(lease_id) or self._handler_turns.is_waiting(lease_id):
                run.held.stop(End.DRAIN)
        try:
            async with asyncio.timeout(seconds):
                await self.idle()
        except TimeoutError:
            commands = [run.held.command for run in self._runs.values()]
            log.warning("drain.stopping", commands=commands)
        for run in list(self._runs.values()):
            run.held.stop(End.DRAIN)
        await self.idle()

    def halt(self) -> int:
        """Stop every handler now, and return how many there were.

        Commands whose handlers have not started are given back.
        """
        halted = 0
        for lease_id, run in list(self._runs.items()):
            has_started = self._gate.has_started(lease_id)
            halted += run.held.stop(End.HALTED if has_started else End.DRAIN) and has_started
        return halted

    def wake(self) -> None:
        """Let callers that wait for a slot look again."""
        self._changed.set()

    async def slot(self) -> None:
        """Wait until another lease may be taken on."""
        await self._until(lambda: self.free > 0)

    async def idle(self) -> None:
        """Wait until no lease is at work."""
        await self._until(lambda: not self._runs)

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds. It is checked whenever a run ends or a slot is free."""
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    # One run

    async def _run(self, run: LeaseRun) -> None:
        """Run a lease from start to end. Raises nothing but a cancellation."""
        job, held, lease = run.job, run.held, run.job.lease
        log.debug("command.started", command_id=lease.command_id, lease_id=lease.lease_id)
        started_at = self._clock()
        try:
            outcome = await self._steps.outcome(run)
            outcome = self._journal.what_counts(lease.lease_id, what_counts(held.finish(), outcome))
            self._gate.log_ended(job, outcome)
            await self._settle(run, outcome)
            if run.signed is not None and self._gate.has_started(lease.lease_id):
                await self._signatures.end(job, run.signed, outcome)
            self._count(held, outcome)
            # In an outage one line at its end counts the commands that ended meanwhile.
            emit = log.debug if self._server.state.count_ended() else log.info
            emit(
                "command.ended",
                command_id=lease.command_id,
                attempt=lease.attempt,
                lease_id=lease.lease_id,
                command=held.command,
                outcome=name_of(outcome),
                seconds=round(self._clock() - started_at, 3),
            )
        except Exception:  # the boundary of a run: the agent goes on, the lease lapses
            log.exception("command.broken", command_id=lease.command_id, command=held.command)
            self._count(held, Dropped("broken"))
            self._gate.log_ended(job, self._journal.what_counts(lease.lease_id, Dropped("broken")))
            self._leases.remove(lease.lease_id)
        finally:
            await self._release(run)

    async def _release(self, run: LeaseRun) -> None:
        """Free the places of a run and remove its files. Both stay while its handler goes on."""
        lease_id = run.job.lease.lease_id
        if run.abandoned is not None:
            self._abandoned[lease_id] = run.abandoned
            run.abandoned.add_done_callback(partial(self._abandoned_ended, run.held))
        self._gate.release(lease_id, is_abandoned=run.abandoned is not None)
        try:
            if run.abandoned is None:
                self._handler_turns.release(lease_id)
                await run.remove_directory()
        finally:
            del self._runs[lease_id]
            self.done += 1
            self.wake()

    def _abandoned_ended(self, held: HeldLease, _task: asyncio.Task[Any]) -> None:
        """Free the slot of a handler that ignored its cancellation and has ended after all."""
        self._abandoned.pop(held.lease_id, None)
        log.info("handler.abandoned_ended", command=held.command, command_id=held.command_id)
        self._gate.release(held.lease_id)
        self._handler_turns.release(held.lease_id)
        self._slots.wake()

    def _count(self, held: HeldLease, outcome: Outcome) -> None:
        """Count a command that ended."""
        is_known = self._live.registry.get(held.command) is not None
        self._meter.ended(held.command, outcome, is_known=is_known)

    # What becomes of the lease

    async def _settle(self, run: LeaseRun, outcome: Outcome) -> None:
        """Put the response into the spool, or let go of the lease."""
        lease = run.job.lease
        if isinstance(outcome, Dropped):
            log.warning("command.dropped", command_id=lease.command_id, reason=outcome.reason)
            self._leases.remove(lease.lease_id)
        elif isinstance(outcome, GivenBack):
            self._leases.remove(lease.lease_id)
            await self._give_back(run.job, outcome)
        else:
            await self._spool_response(run, outcome)

    async def _spool_response(self, run: LeaseRun, outcome: Succeeded | Failed) -> None:
        """Put a response into the spool: it is delivered from there, after any crash or outage."""
        run.held.has_result = True
        body = outcome.body if isinstance(outcome, Succeeded) else None
        await self._spool.put(
            run.reply_to,
            message=message_of(outcome),
            body=body if isinstance(body, StoredBody) else None,
        )
        hit("agent.after_spool")

    async def _give_back(self, job: Job, outcome: GivenBack) -> None:
        """Release a lease; one that must not come again soon lapses by itself, if that works."""
        lease_id = job.lease.lease_id
        if outcome.after_seconds >= _WORTH_SECONDS and await self._lapses_later(
            lease_id, outcome.after_seconds
        ):
            return
        if outcome.reason == NO_COST:
            await self._journal.given_back(job.lease.command_id)
        await release(self._server.connection, lease_id, outcome.reason)

    async def _lapses_later(self, lease_id: str, seconds: float) -> bool:
        """Let a lease lapse by itself after about that time. Return True if the server agrees."""
        if not self._server.state.supports("renewal"):
            return False
        request = RenewRequest(
            lease_ids=[lease_id], lease_seconds=min(math.ceil(seconds), MAX_LEASE_SECONDS)
        )
        try:
            answer = await renew(
                self._server.connection, request, timeout_seconds=_LAST_RENEWAL_SECONDS
            )
        except NoContact:
            return False
        return isinstance(answer, RenewResponse) and not answer.lost
