"""One lease from start to end: params in, the handler under its budget, the response out."""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from arc_agent.config.sections import Config
from arc_agent.guard.gate import Gate
from arc_agent.guard.sealed_params import HostSeals
from arc_agent.guard.signatures import Signatures, Signed
from arc_agent.guard.turns import Turns
from arc_agent.handlers.calling import Raised, Returned, call_handler, call_in
from arc_agent.handlers.context import Context, ParamsSource, Retry
from arc_agent.handlers.events import RunEvents
from arc_agent.handlers.params import convert_params
from arc_agent.handlers.registry import Handler, Registry
from arc_agent.host.clock import Clock
from arc_agent.host.process_state import ProcessState
from arc_agent.jobs.job import Addresses, Job, addresses, allowed, resolved
from arc_agent.jobs.lease_table import End, HeldLease, LeaseTable
from arc_agent.jobs.outcome import NO_COST, Dropped, Failed, GivenBack, Outcome, Succeeded
from arc_agent.jobs.responses import (
    STORAGE_FAILED,
    failure,
    message_of,
    name_of,
    stored,
    what_counts,
)
from arc_agent.jobs.result_files import StoredBody, store_stream
from arc_agent.jobs.run_journal import Journal
from arc_agent.jobs.spool import Spool
from arc_agent.net.allowed_hosts import HostRefused
from arc_agent.net.connection import Connection, NoContact
from arc_agent.net.lease_calls import BrokenLease, release, renew
from arc_agent.net.server_state import Contact
from arc_agent.net.transfer import NoRoom, Transfer, TransferRefused
from arc_agent.work.event_sender import EventSender
from arc_agent.work.handler_limits import HandlerLimits
from arc_agent.work.meter import Meter
from arc_protocol.errors import InvalidEnvelope
from arc_protocol.lifecycle import budget_seconds
from arc_protocol.messages.bodies import InlineBody, StorageBody
from arc_protocol.messages.leases import RenewRequest, RenewResponse
from arc_runtime.failpoints import hit

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

T = TypeVar("T")

RETRIES_EXHAUSTED: Final = "RETRIES_EXHAUSTED"
MAX_LEASE_SECONDS: Final = 3_600
"""The longest lease that servers grant unless they are configured otherwise."""
_WORTH_SECONDS: Final = 5.0
"""A command that may come again sooner is given back at once."""
_SMALL_BYTES: Final = 64 * 1024
"""Decoded at once in the event loop; more goes to a thread."""


class Runner:
    """Runs leases, up to `max_concurrent` at once."""

    def __init__(
        self,
        *,
        config: Callable[[], Config],
        registry: Callable[[], Registry],
        leases: LeaseTable,
        spool: Spool,
        transfer: Transfer,
        connection: Connection,
        contact: Contact,
        gate: Gate,
        journal: Journal,
        lines: HandlerLimits,
        signatures: Signatures,
        seals: HostSeals,
        event_sender: EventSender,
        slots: Turns,
        process: ProcessState,
        meter: Meter,
        clock: Clock,
    ) -> None:
        """`slots` are as many as `max_concurrent` says, less `abandoned`."""
        self._config = config
        self._registry = registry
        self._leases = leases
        self._spool = spool
        self._transfer = transfer
        self._connection = connection
        self._contact = contact
        self._gate = gate
        self._journal = journal
        self._lines = lines
        self._signatures = signatures
        self._seals = seals
        self._signed: dict[str, Signed] = {}
        """The signatures of leases that run, as far as they have been verified."""
        self._event_sender = event_sender
        self._slots = slots
        self._process = process
        self._meter = meter
        self.promised = 0
        """How many more leases may come of the request that was sent last: they are taken on, if
        need be without a slot, though a command that had to wait has taken one since."""
        self._clock = clock
        self._jobs: dict[str, HeldLease] = {}
        self._abandoned: set[asyncio.Task[Any]] = set()
        self.done = 0
        """How many commands have been run to an end of any kind."""
        self._changed = asyncio.Event()

    @property
    def free(self) -> int:
        """How many more may be run now.

        An abandoned handler keeps its slot until it really ends: it still uses what the limit is
        there to protect.
        """
        return 0 if self._lines.is_full else self._slots.free

    @property
    def abandoned(self) -> int:
        """How many handlers ignored their cancellation and still run."""
        return len(self._abandoned)

    @property
    def running(self) -> int:
        """How many run now."""
        return len(self._jobs)

    @property
    def has_abandoned(self) -> bool:
        """Whether code that ignored its cancellation still runs."""
        return bool(self._abandoned)

    def start(self, group: asyncio.TaskGroup, job: Job) -> None:
        """Take a lease on: it is held, renewed and run from here."""
        lease = job.lease
        held = HeldLease(
            lease_id=lease.lease_id,
            command_id=lease.command_id,
            command=lease.envelope.command,
            attempt=lease.attempt,
            asked_at=job.asked_at,
            seconds=job.seconds,
        )
        self._jobs[lease.lease_id] = held
        self._leases.add(held)
        self._slots.try_enter(lease.lease_id)
        self.promised = max(0, self.promised - 1)
        group.create_task(self._run(job, held), name=f"run:{lease.lease_id}")

    async def refuse(self, broken: BrokenLease, lease_url: str) -> bool:
        """Answer a lease that cannot be read with INVALID_ENVELOPE; False when there is no way."""
        if broken.submit_url is None or broken.command_id is None or broken.lease_id is None:
            return False
        try:
            submit_url = allowed(lease_url, broken.submit_url, self._transfer.check)
        except (InvalidEnvelope, HostRefused):
            return False
        await self._spool.put(
            command_id=broken.command_id,
            lease_id=broken.lease_id,
            command=broken.command or "",
            attempt=1,
            submit_url=submit_url,
            upload=None,
            message=message_of(Failed("INVALID_ENVELOPE", broken.reason)),
            body=None,
        )
        return True

    async def redeliver(self, job: Job) -> bool:
        """Hand a finished result that waits here in under a new lease of its command, if any."""
        entry = self._spool.of_command(job.lease.command_id)
        if entry is None:
            return False
        where, _ = self._addresses(job)
        held = HeldLease(
            lease_id=job.lease.lease_id,
            command_id=job.lease.command_id,
            command=entry.command,
            attempt=job.lease.attempt,
            asked_at=job.asked_at,
            seconds=job.seconds,
        )
        held.finish()
        self._leases.remove(entry.lease_id)
        self._leases.add(held)
        await self._spool.rebind(
            entry,
            lease_id=job.lease.lease_id,
            attempt=job.lease.attempt,
            submit_url=where.submit_url,
            upload=where.upload,
        )
        log.info("response.rebound", command_id=job.lease.command_id, attempt=job.lease.attempt)
        return True

    async def drain(self, seconds: float) -> None:
        """Let running handlers finish for so long, then stop the rest. Who waits has not begun."""
        for lease_id, held in list(self._jobs.items()):
            if self._gate.is_waiting(lease_id) or self._lines.is_waiting(lease_id):
                held.stop(End.DRAIN)
        try:
            async with asyncio.timeout(seconds):
                await self._until(lambda: not self._jobs)
        except TimeoutError:
            log.warning("drain.stopping", commands=[h.command for h in self._jobs.values()])
        for held in list(self._jobs.values()):
            held.stop(End.DRAIN)
        await self._until(lambda: not self._jobs)

    def halt(self) -> int:
        """End all that runs, now; how many that were. What has not begun is given back."""
        halted = 0
        for lease_id, held in list(self._jobs.items()):
            has_started = self._gate.has_started(lease_id)
            halted += held.stop(End.HALTED if has_started else End.DRAIN) and has_started
        return halted

    # One run

    async def _run(self, job: Job, held: HeldLease) -> None:
        """The whole of it. Never raises but when cancelled."""
        lease = job.lease
        bound = log.bind(command_id=lease.command_id, attempt=lease.attempt)
        bound.info("command.started", command=held.command, lease_id=lease.lease_id)
        started_at = self._clock()
        self._gate.leased(job)
        try:
            where, problem = self._addresses(job)
            outcome = problem or await self._outcome(job, held, where)
            outcome = self._journal.what_counts(job, what_counts(held.finish(), outcome))
            self._gate.ended(job, outcome)
            await self._hand_in(job, held, where, outcome)
            signed = self._signed.get(lease.lease_id)
            if signed is not None and self._gate.has_started(lease.lease_id):
                await self._signatures.ended(job, signed, outcome)
            self._count(held, outcome)
            say = bound.debug if self._contact.count_ended() else bound.info
            say(
                "command.ended",
                command=held.command,
                outcome=name_of(outcome),
                seconds=round(self._clock() - started_at, 3),
            )
        except Exception:  # whatever it was, it must not end the agent: the lease lapses
            bound.exception("command.broken", command=held.command)
            self._count(held, Dropped("broken"))
            self._gate.ended(job, self._journal.what_counts(job, Dropped("broken")))
            self._leases.remove(lease.lease_id)
        finally:
            del self._jobs[lease.lease_id]
            self._signed.pop(lease.lease_id, None)
            self._gate.left(lease.lease_id, is_abandoned=self._is_abandoned(job))
            if not self._is_abandoned(job):
                self._lines.left(lease.lease_id)
            self.done += 1
            if not self._is_abandoned(job) and job.directory.exists():
                removing = asyncio.to_thread(shutil.rmtree, job.directory, ignore_errors=True)
                await asyncio.shield(removing)  # temporary files never outlive their command
            self.notify()

    def _count(self, held: HeldLease, outcome: Outcome) -> None:
        """One more has come to an end."""
        is_known = self._registry().get(held.command) is not None
        self._meter.ended(held.command, outcome, is_known=is_known)

    def _is_abandoned(self, job: Job) -> bool:
        """Whether the run's handler is still at it."""
        return any(task.get_name() == job.task_name for task in self._abandoned)

    def _addresses(self, job: Job) -> tuple[Addresses, Failed | None]:
        """Where the response goes, and what is wrong with the envelope if something is."""
        config = self._config()
        return addresses(job, config.deployment_id, self._transfer.check, config.command_target)

    async def _outcome(self, job: Job, held: HeldLease, where: Addresses) -> Outcome:
        """Verify, ask the policy, fetch params, call the handler, store what it returns."""
        signed = self._signatures.verify(job)
        if isinstance(signed, Failed):
            return signed
        denied = self._gate.by_name(job, None if signed is None else signed.key_id)
        if denied is not None:
            return denied
        handler = self._registry().get(job.lease.envelope.command)
        if handler is None:
            return Failed("UNKNOWN_COMMAND", f"no handler for {job.lease.envelope.command!r}")
        refused = None if handler.idempotent else await self._journal.hold(job, where)
        if refused is not None:
            return refused
        source = await self._params(job, held)
        if not isinstance(source, ParamsSource):
            return source
        if signed is not None:
            self._signed[job.lease.lease_id] = signed
            not_signed = await self._signatures.admit(job, signed, source)
            if not_signed is not None:
                return not_signed
            if signed.claims.sealed is not None:
                source = await self._seals.opened(job, signed.claims.sealed, source)
                if not isinstance(source, ParamsSource):
                    return source
        refused = await self._admitted(job, held, source, handler, signed)
        if refused is None and not handler.idempotent:
            refused = await self._journal.start(job, where)
        if refused is not None:
            return refused
        seal = None if signed is None else self._seals.for_small(signed)
        events = self._event_sender.begin(
            job.lease.command_id, job.lease.lease_id, is_private=seal is not None
        )
        context = self._context(job, held, handler, source, where, seal, events)
        try:
            outcome = await self._result(job, held, where, handler, source, context)
        finally:
            self._event_sender.end(events)
        return outcome if signed is None else await self._seals.sealed(job, signed, outcome)

    async def _result(
        self,
        job: Job,
        held: HeldLease,
        where: Addresses,
        handler: Handler,
        source: ParamsSource,
        context: Context,
    ) -> Outcome:
        """Call the handler, and store what it returns."""
        hit("agent.before_handler")
        work = self._call(job, handler, source, context)
        called_at = self._clock()
        result = await self._bounded(job, held, work, self._timeout(handler), handler, context)
        self._meter.handled(handler.name, self._clock() - called_at)
        if isinstance(result, Raised) and isinstance(result.error, Retry) and held.end is None:
            return await self._put_off(job, held, where, result.error)
        if result is None or held.finish() is not None:
            self._discard(result)
            return Dropped("stopped")  # the reason is in `held`
        hit("agent.after_handler")
        if isinstance(result, Raised):
            return failure(
                job,
                result.error,
                sends_tracebacks=self._config().handlers.send_tracebacks,
            )
        return await stored(
            job, result.value, handler.result_type, self._spool.data_dir, self._spool.has_room
        )

    async def _admitted(
        self,
        job: Job,
        held: HeldLease,
        source: ParamsSource,
        handler: Handler,
        signed: Signed | None,
    ) -> Outcome | None:
        """Until the handler may start: None. Else what becomes of the command."""
        lease_id = job.lease.lease_id
        queue = partial(self._lines.enter, handler, lease_id)
        if signed is None:
            admitting = self._gate.admit(job, source, queue=queue)
        else:
            still = partial(self._signatures.may_start, job)
            admitting = self._gate.admit(job, source, signed.key_id, queue, still)
        if self._gate.is_quick(lease_id) and self._lines.try_enter(handler, lease_id):
            return await admitting
        refused = await self._bounded(job, held, admitting, None)
        if held.end is End.TIMEOUT and not self._is_overdue(job):
            return GivenBack("still_waiting")  # a server that renews no lease takes it back
        return Dropped("stopped") if held.end is not None else refused

    async def _put_off(self, job: Job, held: HeldLease, where: Addresses, retry: Retry) -> Outcome:
        """Hold a command until it may come again, then give it back; others run meanwhile."""
        lease, seconds = job.lease, retry.after_seconds
        left = math.inf if job.deadline_at is None else job.deadline_at - self._clock()
        is_last = lease.max_attempts is not None and lease.attempt >= lease.max_attempts
        if is_last or seconds >= left:
            why = "the deadline is nearer" if seconds >= left else "no attempts are left"
            text = f"{retry.message} ({why})" if retry.message else why
            return Failed(RETRIES_EXHAUSTED, text)
        log.info("command.retried_later", command_id=lease.command_id, seconds=seconds)
        await self._journal.may_run_again(job, where)
        self._lines.left(lease.lease_id)
        if self._lines.is_full:
            return GivenBack("retry", seconds)
        until = self._clock() + seconds
        self._lines.wait(lease.lease_id)
        await self._bounded(job, held, asyncio.sleep(seconds), None)
        return GivenBack("retry", max(0.0, until - self._clock()))

    async def _call(
        self, job: Job, handler: Handler, source: ParamsSource, context: Context
    ) -> Returned | Raised:
        """Convert params and call."""
        inline_bytes = job.inline_bytes

        async def consume(chunks: AsyncIterator[Any]) -> Succeeded:
            return Succeeded(
                await store_stream(self._spool.data_dir, chunks, inline_bytes, self._spool.has_room)
            )

        params = None
        if handler.params_name is not None:
            try:
                data = (
                    source.read() if source.file is None else await asyncio.to_thread(source.read)
                )
                if len(data) < _SMALL_BYTES:
                    params = convert_params(data, handler)
                else:
                    params = await asyncio.to_thread(convert_params, data, handler)
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # models have code of their own, which may even exit
                return Raised(error)
        try:
            return await call_handler(handler, params, context, consume)
        finally:
            self._process.put_back(handler.name, context.command_id)

    def _context(
        self,
        job: Job,
        held: HeldLease,
        handler: Handler,
        source: ParamsSource,
        where: Addresses,
        seal: Callable[[bytes], bytes] | None,
        events: RunEvents,
    ) -> Context:
        """What the handler gets."""
        envelope = job.lease.envelope
        timeout_seconds = self._timeout(handler)
        started_at = self._clock()

        def remaining() -> float:
            return self._budget(job, held, timeout_seconds, started_at)

        def make_directory() -> Path:
            job.directory.mkdir(mode=0o700, exist_ok=True)
            return job.directory

        return Context(
            command_id=envelope.command_id,
            command=envelope.command,
            attempt=job.lease.attempt,
            deployment_id=envelope.deployment_id,
            target=envelope.target,
            trace_context=envelope.trace_context,
            deadline=envelope.deadline,
            params=source,
            remaining=remaining,
            stopped=held.stopped,
            make_directory=make_directory,
            announce_restart=partial(self._journal.announce, job, where, seal=seal),
            events=events,
        )

    # Params

    async def _params(self, job: Job, held: HeldLease) -> ParamsSource | Outcome:
        """The params of a command, or why there are none."""
        params = job.lease.envelope.params
        if isinstance(params, InlineBody):
            try:
                data = params.data()
            except ValueError as error:
                return Failed("INVALID_ENVELOPE", f"params.inlineBase64: {error}")
            return ParamsSource(data=data, size=len(data))
        fetched = await self._bounded(
            job, held, self._fetch(job, params), self._config().transfer.give_up_seconds
        )
        if fetched is not None:
            return fetched
        if held.end is End.TIMEOUT and not self._is_overdue(job):
            # Trouble in passing is no answer to the sender: somebody else may have more luck.
            return GivenBack("params_unavailable")
        return Dropped("stopped")

    async def _fetch(self, job: Job, params: StorageBody) -> ParamsSource | Outcome:
        """Fetch params from the store."""
        if params.storage_get_request is None:
            return Failed("INVALID_ENVELOPE", "params.storageGetRequest: missing")
        path = job.directory / "params"
        try:
            request = resolved(job.lease_url, params.storage_get_request)
            await asyncio.to_thread(job.directory.mkdir, mode=0o700, exist_ok=True)
            fetched = await self._transfer.fetch(
                request, path, expected=params.size, has_room=self._spool.has_room
            )
        except (InvalidEnvelope, HostRefused) as error:
            return Failed("INVALID_ENVELOPE", f"params: {error}")
        except TransferRefused as error:
            return Failed(STORAGE_FAILED, f"params: {error.reason}")
        except (NoRoom, OSError) as error:
            log.error("params.no_room", command_id=job.lease.command_id, reason=str(error))
            return GivenBack("no_room")
        return ParamsSource(file=path, size=fetched.size, sha256=fetched.sha256)

    # Time

    def _timeout(self, handler: Handler) -> float | None:
        """The shorter of the handler's own time and the configuration's."""
        limits = [handler.timeout_seconds, self._config().handlers.timeout_seconds]
        return min((limit for limit in limits if limit is not None), default=None)

    def _is_overdue(self, job: Job) -> bool:
        """Whether the deadline has passed."""
        return job.deadline_at is not None and self._clock() >= job.deadline_at

    def _budget(
        self, job: Job, held: HeldLease, timeout_seconds: float | None, started_at: float
    ) -> float:
        """Seconds that are left."""
        now = self._clock()
        return budget_seconds(
            lease_seconds_left=held.ends_at - now,
            deadline_seconds_left=None if job.deadline_at is None else job.deadline_at - now,
            timeout_seconds=None if timeout_seconds is None else timeout_seconds + started_at - now,
            is_renewed=self._contact.supports("renewal"),
        )

    async def _bounded(
        self,
        job: Job,
        held: HeldLease,
        work: Coroutine[Any, Any, T],
        timeout_seconds: float | None,
        handler: Handler | None = None,
        context: Context | None = None,
    ) -> T | None:
        """The result of `work` within its budget, None when it was stopped: `held.end` says why."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        held.on_change(lambda: call_in(loop, changed.set))
        started_at = self._clock()
        if self._budget(job, held, timeout_seconds, started_at) <= 0:
            work.close()
            held.stop(End.TIMEOUT)
            return None
        task = asyncio.create_task(work, name=job.task_name)
        task.add_done_callback(lambda _: changed.set())
        try:
            while not task.done() and held.end is None:
                left = self._budget(job, held, timeout_seconds, started_at)
                if left <= 0:
                    held.stop(End.TIMEOUT)
                    break
                changed.clear()
                if task.done():
                    break
                await _wait(changed, min(left, 3600.0))
        except asyncio.CancelledError:
            task.cancel()
            raise
        if held.end is None or (task.done() and not task.cancelled()):
            return await task
        await self._stop(task, held, handler, context)
        return None

    async def _stop(
        self,
        task: asyncio.Task[Any],
        held: HeldLease,
        handler: Handler | None,
        context: Context | None,
    ) -> None:
        """Cancel a handler, wait a little, and leave it alone if it does not end."""
        if context is not None:
            context.cancelled.set()
        task.cancel()
        grace = self._config().handlers.grace_seconds
        if handler is not None:
            grace = max(grace, handler.grace_seconds)
        await asyncio.wait({task}, timeout=grace)
        if task.done():
            self._discard(_result_of(task))
            return
        log.error(
            "handler.abandoned",
            command=held.command,
            command_id=held.command_id,
            reason=held.end,
            hint="it ignores its cancellation, and keeps its slot until it ends",
        )
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned_ended)

    def _abandoned_ended(self, task: asyncio.Task[Any]) -> None:
        """Code that had been given up has ended after all: its slot is free."""
        self._abandoned.discard(task)
        log.info("handler.abandoned_ended", task=task.get_name())
        self._discard(_result_of(task))
        lease_id = task.get_name().removeprefix("handler:")
        self._gate.left(lease_id)
        self._lines.left(lease_id)
        self._slots.look()

    def _discard(self, result: Any) -> None:
        """Remove the file of a result that nobody will hand in."""
        value = result.value if isinstance(result, Returned) else None
        if isinstance(value, Succeeded) and isinstance(value.body, StoredBody):
            path = self._spool.data_dir.bodies / value.body.name
            path.unlink(missing_ok=True)

    def notify(self) -> None:
        """Tell who waits for a slot: one is free, or there are more."""
        self._changed.set()

    async def slot(self) -> None:
        """Until a command may be taken on."""
        await self._until(lambda: self.free > 0)

    async def idle(self) -> None:
        """Until nothing runs."""
        await self._until(lambda: not self._jobs)

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Until something holds; looked at whenever a command ends."""
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    async def _hand_in(self, job: Job, held: HeldLease, where: Addresses, outcome: Outcome) -> None:
        """Put the response into the spool; from there it is delivered whatever happens."""
        lease = job.lease
        if isinstance(outcome, Dropped):
            log.warning("command.dropped", command_id=lease.command_id, reason=outcome.reason)
            self._leases.remove(lease.lease_id)
            return
        if isinstance(outcome, GivenBack):
            self._leases.remove(lease.lease_id)
            if outcome.after_seconds < _WORTH_SECONDS or not await self._lapses_later(
                lease.lease_id, outcome.after_seconds
            ):
                if outcome.reason == NO_COST:
                    await self._journal.given_back(job)
                await release(self._connection, lease.lease_id, outcome.reason)
            return
        held.has_result = True
        body = outcome.body if isinstance(outcome, Succeeded) else None
        await asyncio.shield(
            self._spool.put(
                command_id=lease.command_id,
                lease_id=lease.lease_id,
                command=held.command,
                attempt=lease.attempt,
                submit_url=where.submit_url,
                upload=where.upload,
                message=message_of(outcome),
                body=body if isinstance(body, StoredBody) else None,
            )
        )
        hit("agent.after_spool")

    async def _lapses_later(self, lease_id: str, seconds: float) -> bool:
        """Let a lease lapse by itself at about that time; whether the server agrees."""
        if not self._contact.supports("renewal"):
            return False
        request = RenewRequest(
            lease_ids=[lease_id], lease_seconds=min(math.ceil(seconds), MAX_LEASE_SECONDS)
        )
        try:
            answer = await renew(self._connection, request, timeout_seconds=5.0)
        except NoContact:
            return False
        return isinstance(answer, RenewResponse) and not answer.lost


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Until the event is set or the time is up."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def _result_of(task: asyncio.Task[Any]) -> Any:
    """What a task came back with; None when it was cancelled or raised."""
    return None if task.cancelled() or task.exception() is not None else task.result()
