"""RunSteps take one lease from its envelope to the outcome of its command.

The steps stand in a straight list. Each of them may be the last: it raises Ended with the outcome.
"""

from __future__ import annotations

import asyncio
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from arc_agent.guard.gate import Gate
from arc_agent.guard.sealed_params import HostSeals
from arc_agent.guard.signatures import Signatures, Signed
from arc_agent.guard.turns import KeyedTurns
from arc_agent.handlers.calling import Raised, Returned
from arc_agent.handlers.context import Context, ParamsSource, Retry
from arc_agent.handlers.events import RunEvents
from arc_agent.handlers.registry import Handler
from arc_agent.host.clock import MonotonicClock
from arc_agent.host.process_state import ProcessState
from arc_agent.jobs.job import Job, ReplyTo, check_envelope
from arc_agent.jobs.lease_table import HeldLease
from arc_agent.jobs.outcome import Ended, Failed, GivenBack, Outcome
from arc_agent.jobs.responses import failure, stored
from arc_agent.jobs.run_journal import RunJournal
from arc_agent.jobs.spool import Spool
from arc_agent.net.server import Server
from arc_agent.work.event_sender import EventSender
from arc_agent.work.handler_run import HandlerRun, Stopped, timeout_of
from arc_agent.work.live_config import LiveConfig
from arc_agent.work.meter import Meter
from arc_agent.work.params_fetch import ParamsFetch
from arc_agent.work.run_time import STOPPED, RunTime
from arc_protocol.errors import InvalidEnvelope
from arc_protocol.messages.bodies import StorageBody

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

RETRIES_EXHAUSTED: Final = "RETRIES_EXHAUSTED"


class LeaseRun:
    """One run of one lease: what its steps have found out so far."""

    def __init__(self, job: Job, held: HeldLease, time: RunTime) -> None:
        """Begin a run of `job`, whose entry in the lease table is `held`."""
        self.job: Final = job
        self.held: Final = held
        self.time: Final = time
        self.reply_to = ReplyTo.by_token(job)
        self.signed: Signed | None = None
        self.abandoned: asyncio.Task[Any] | None = None
        """The task of a handler that ignored its cancellation."""
        self._has_directory = isinstance(job.lease.envelope.params, StorageBody)

    @property
    def signed_by(self) -> str | None:
        """Return the id of the key that the command is signed with, once it is verified."""
        return None if self.signed is None else self.signed.key_id

    def make_directory(self) -> Path:
        """Make the directory of the run. Blocks. Safe from any thread."""
        self._has_directory = True
        self.job.directory.mkdir(mode=0o700, exist_ok=True)
        return self.job.directory

    async def remove_directory(self) -> None:
        """Remove the directory of the run, if it was made."""
        if self._has_directory:
            removing = asyncio.to_thread(shutil.rmtree, self.job.directory, ignore_errors=True)
            await asyncio.shield(removing)


class RunSteps:
    """The steps of a run. Lives in the main loop."""

    def __init__(
        self,
        *,
        live: LiveConfig,
        server: Server,
        spool: Spool,
        journal: RunJournal,
        gate: Gate,
        signatures: Signatures,
        seals: HostSeals,
        handler_turns: KeyedTurns,
        event_sender: EventSender,
        process: ProcessState,
        meter: Meter,
        clock: MonotonicClock,
    ) -> None:
        """Keep the handlers' own limits by `handler_turns`."""
        self._live = live
        self._server = server
        self._spool = spool
        self._journal = journal
        self._gate = gate
        self._signatures = signatures
        self._seals = seals
        self._handler_turns = handler_turns
        self._event_sender = event_sender
        self._process = process
        self._meter = meter
        self._clock = clock
        self._params = ParamsFetch(live=live, transfer=server.transfer, spool=spool)

    async def outcome(self, run: LeaseRun) -> Outcome:
        """Take a lease through all steps. Return what becomes of its command."""
        try:
            return await self._steps(run)
        except Ended as end:
            return end.outcome
        except InvalidEnvelope as error:
            return Failed(error.code, error.message)

    async def _steps(self, run: LeaseRun) -> Outcome:
        """Take one step after the other. Raises Ended, InvalidEnvelope."""
        job = run.job
        self._check_envelope(run)
        signed = run.signed = self._signatures.verify(job)
        self._gate.check_name(job, run.signed_by)
        handler = self._find_handler(job)
        if not handler.idempotent:
            await self._journal.hold(run.reply_to)
        source = await self._params.fetch(job, run.time)
        if signed is not None:
            await self._signatures.admit(job, signed, source)
            if signed.claims.sealed is not None:
                source = await self._seals.open(job, signed.claims.sealed, source)
        await self._admit(run, handler, source)
        if not handler.idempotent:
            await self._journal.start(run.reply_to)
        outcome = await self._call(run, handler, source)
        return outcome if signed is None else await self._seals.seal(job, signed, outcome)

    def _check_envelope(self, run: LeaseRun) -> None:
        """Find out where the response goes, and check the rest. Raises InvalidEnvelope."""
        config = self._live.config
        run.reply_to = ReplyTo.of(run.job, self._server.transfer.check)
        check_envelope(run.job.lease, config.deployment_id, config.command_target)

    def _find_handler(self, job: Job) -> Handler:
        """Return the handler of a command. Raises Ended when there is none."""
        command = job.lease.envelope.command
        handler = self._live.registry.get(command)
        if handler is None:
            raise Ended(Failed("UNKNOWN_COMMAND", f"no handler for {command!r}"))
        return handler

    async def _admit(self, run: LeaseRun, handler: Handler, source: ParamsSource) -> None:
        """Wait until the handler may start. Raises Ended when it may not."""
        job, lease_id = run.job, run.job.lease.lease_id
        admitted = self._gate.admit(
            job,
            source,
            run.signed_by,
            queue=partial(self._handler_turns.take, handler.name, lease_id),
            recheck=partial(self._signatures.recheck, job) if run.signed else lambda: None,
        )
        if self._gate.is_open(lease_id) and self._handler_turns.try_take(handler.name, lease_id):
            await admitted  # nothing to wait for but the audit log
        else:
            # A server that renews no lease takes a command back that waits for longer than that.
            await run.time.run(admitted, late="still_waiting")

    async def _call(self, run: LeaseRun, handler: Handler, source: ParamsSource) -> Outcome:
        """Call the handler and take its result in. Raises Ended."""
        lease = run.job.lease
        seal = None if run.signed is None else self._seals.for_small(run.signed)
        # The server could read events: a run whose result is sealed sends none.
        events = self._event_sender.begin(
            lease.command_id, lease.lease_id, is_private=seal is not None
        )
        announce = partial(self._journal.announce, run.reply_to, seal=seal)
        call = HandlerRun(
            job=run.job,
            held=run.held,
            handler=handler,
            source=source,
            context=self._context(run, handler, source, events, announce),
            time=run.time,
            live=self._live,
            spool=self._spool,
            process=self._process,
        )
        called_at = self._clock()
        try:
            end = await call.run()
        finally:
            self._event_sender.end(events)
        self._meter.handled(handler.name, self._clock() - called_at)
        if isinstance(end, Stopped):
            run.abandoned = end.abandoned
            raise Ended(STOPPED)
        return await self._result(run, handler, end.value)

    async def _result(self, run: LeaseRun, handler: Handler, value: Returned | Raised) -> Outcome:
        """Return the outcome of a handler that returned or raised. Raises Ended."""
        if isinstance(value, Raised) and isinstance(value.error, Retry):
            return await self._put_off(run, value.error)
        if isinstance(value, Raised):
            sends_tracebacks = self._live.config.handlers.send_tracebacks
            return failure(run.job, value.error, sends_tracebacks=sends_tracebacks)
        spool = self._spool
        return await stored(
            run.job, value.value, handler.result_type, spool.data_dir, spool.has_room
        )

    async def _put_off(self, run: LeaseRun, retry: Retry) -> Outcome:
        """Hold a command until it may come again, then give it back. Others run meanwhile."""
        job, lease, seconds = run.job, run.job.lease, retry.after_seconds
        left = math.inf if job.deadline_at is None else job.deadline_at - self._clock()
        is_last = lease.max_attempts is not None and lease.attempt >= lease.max_attempts
        if is_last or seconds >= left:
            why = "the deadline is nearer" if seconds >= left else "no attempts are left"
            text = f"{retry.message} ({why})" if retry.message else why
            return Failed(RETRIES_EXHAUSTED, text)
        log.info("command.retried_later", command_id=lease.command_id, seconds=seconds)
        await self._journal.may_run_again(run.reply_to)
        self._handler_turns.release(lease.lease_id)
        if self._handler_turns.is_full:
            return GivenBack("retry", seconds)
        until = self._clock() + seconds
        with self._handler_turns.waiting(lease.lease_id):
            waiting = asyncio.create_task(asyncio.sleep(seconds))
            await run.time.finishes(waiting, None)
            waiting.cancel()
        return GivenBack("retry", max(0.0, until - self._clock()))

    def _context(
        self,
        run: LeaseRun,
        handler: Handler,
        source: ParamsSource,
        events: RunEvents,
        announce_restart: Any,
    ) -> Context:
        """Return the context for the handler."""
        envelope = run.job.lease.envelope
        return Context(
            command_id=envelope.command_id,
            command=envelope.command,
            attempt=run.job.lease.attempt,
            deployment_id=envelope.deployment_id,
            target=envelope.target,
            trace_context=envelope.trace_context,
            deadline=envelope.deadline,
            params=source,
            remaining=partial(
                run.time.seconds_left, timeout_of(handler, self._live), self._clock()
            ),
            is_stopped=lambda: run.held.is_stopped,
            make_directory=run.make_directory,
            announce_restart=announce_restart,
            events=events,
        )
