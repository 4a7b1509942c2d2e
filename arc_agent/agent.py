"""The composition root: a configuration in, a running agent out, and how it stops.

data directory locked → spool open → heartbeat's thread starts
  → delivery: hands in what is finished, the spool's remains first
  → poller: asks for leases     → runner: a task for each
SIGTERM: the poller stops → handlers get their time → the rest is released
  → the spool is flushed → heartbeat and sessions end
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import structlog

from arc_agent import __version__
from arc_agent.config.sections import audit_directory, control_socket, data_directory
from arc_agent.control.verbs import register
from arc_agent.guard.audit import Audit
from arc_agent.guard.gate import Gate
from arc_agent.guard.pause import Pause
from arc_agent.guard.sealed_params import HostSeals
from arc_agent.guard.signatures import Signatures
from arc_agent.guard.turns import Turns
from arc_agent.handlers.calling import call_in, in_thread
from arc_agent.handlers.declared.programs import kill_all
from arc_agent.handlers.lifespans import open_all
from arc_agent.host import systemd
from arc_agent.host.clock import Clock, boot_seconds
from arc_agent.host.control_socket import Control
from arc_agent.host.data_dir import DataDir
from arc_agent.host.process_state import ProcessState
from arc_agent.jobs.delivery import Delivery
from arc_agent.jobs.lease_table import HeldLease, LeaseTable
from arc_agent.jobs.run_journal import Journal, answer_left
from arc_agent.jobs.spool import Spool, SpoolError
from arc_agent.net.connection import BackOff, Connection
from arc_agent.net.server_state import Contact
from arc_agent.net.transfer import Transfer
from arc_agent.work.event_sender import EventSender
from arc_agent.work.handler_limits import HandlerLimits
from arc_agent.work.heartbeat import Heartbeat
from arc_agent.work.live_config import LiveConfig
from arc_agent.work.meter import Meter
from arc_agent.work.poller import Poller
from arc_agent.work.registration import Registration
from arc_agent.work.runner import Runner

if TYPE_CHECKING:
    from arc_agent.work.once import Once  # not loaded by an agent that runs on

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_DISK_THREADS: Final = 16
_THREADS_PER_RUN: Final = 8
"""Handlers use the same threads as our own disk work (`asyncio.to_thread`): enough for both."""
_LAST_WORK_SECONDS: Final = 1.0
_STOP_SLACK_SECONDS: Final = 30.0
"""What releasing, killing and closing take at worst when the agent stops."""
_OK: Final = 0
_BROKEN: Final = 1


class Agent:
    """One process start of an agent: its id is never used again."""

    def __init__(
        self, live: LiveConfig, clock: Clock = boot_seconds, once: Once | None = None
    ) -> None:
        """With `once`, it ends by itself when that is done."""
        self._live = live
        self._once = once
        self._clock = clock
        self.agent_id = f"{live.config.agent_name}-{uuid.uuid4().hex[:16]}"
        self._stop = asyncio.Event()
        self._is_broken = False
        self._leases = LeaseTable()
        self._contact = Contact(clock)
        self._work = ThreadPoolExecutor(
            _DISK_THREADS + _THREADS_PER_RUN * live.config.max_concurrent, thread_name_prefix="work"
        )
        self._apply: Callable[[], None] = lambda: None
        self.has_abandoned = False
        """Whether code that ignores its cancellation is left: the process must be ended hard."""

    def stop(self) -> None:
        """Begin to stop."""
        self._stop.set()

    def _signalled(self) -> None:
        """Begin to stop; the second time, end at once."""
        if self._stop.is_set():
            log.warning("stop.at_once")
            kill_all()
            os._exit(_BROKEN)
        self._stop.set()

    def _fail(self) -> None:
        """Stop, because a part is broken that nothing works without: a restart may mend it."""
        self._is_broken = True
        self._stop.set()

    def reload(self) -> None:
        """Read the configuration again; what is wrong with it is logged, and the old stays."""
        systemd.reloading()
        if self._live.reload():
            self._apply()
        systemd.ready()

    async def run(self, *, handles_signals: bool = True) -> int:
        """Live until stopped; the exit code. Raises DataDirError and SpoolError at the start."""
        live, config = self._live, self._live.config
        started_at = self._clock()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(self._work)
        async with AsyncExitStack() as stack:
            data_dir = stack.enter_context(DataDir(data_directory(config, os.environ)))
            spool = await Spool.open(data_dir, config.spool)
            stack.push_async_callback(spool.close)
            pause = Pause(data_dir.path)
            audit = await self._open_audit(pause)
            if audit is not None:
                stack.push_async_callback(audit.close)
            connection = Connection(config.server, live.token, live.network)
            await connection.open()
            stack.push_async_callback(connection.close)
            transfer = Transfer(config.transfer, config.server, live.network)
            await transfer.open()
            stack.push_async_callback(transfer.close)
            await open_all(
                live.registry.lifespans,
                live.registry.provisions,
                stack,
                config.handlers.lifespan_seconds,
            )
            journal = Journal(spool)
            back_off = BackOff(random.SystemRandom(), config.server.max_back_off_seconds)
            delivery = Delivery(
                spool=spool,
                transfer=transfer,
                connection=connection,
                contact=self._contact,
                leases=self._leases,
                clock=self._clock,
                back_off=back_off,
            )
            slots = Turns(
                lambda: live.config.max_concurrent - runner.abandoned, lambda: runner.notify()
            )
            gate = Gate(
                policy=lambda: live.policy,
                settings=lambda: live.config.policy,
                audit=audit,
                slots=slots,
                clock=self._clock,
            )
            await self._remember(gate, audit)
            lines = HandlerLimits(
                find=lambda name: live.registry.get(name),
                slots=slots,
                max_waiting=lambda: live.config.handlers.max_waiting,
            )
            signatures = Signatures(
                config=lambda: live.config,
                keys=lambda: live.signing_keys,
                directory=data_dir.path,
                note=gate.refused,
            )
            stack.callback(signatures.close)
            await signatures.open()
            await self._answer_left(journal, spool, signatures)
            self._hold_leases_of(spool)
            event_sender = EventSender(
                connection=connection,
                contact=self._contact,
                settings=lambda: live.config.events,
            )
            process = ProcessState()
            meter = self._meter()
            runner = Runner(
                config=lambda: live.config,
                registry=lambda: live.registry,
                leases=self._leases,
                spool=spool,
                transfer=transfer,
                connection=connection,
                contact=self._contact,
                gate=gate,
                journal=journal,
                lines=lines,
                signatures=signatures,
                seals=HostSeals(
                    keys=lambda: live.host_keys, data_dir=data_dir, has_room=spool.has_room
                ),
                event_sender=event_sender,
                slots=slots,
                process=process,
                meter=meter,
                clock=self._clock,
            )
            registration = Registration(
                agent_id=self.agent_id,
                config=lambda: live.config,
                registry=lambda: live.registry,
                connection=connection,
                contact=self._contact,
                status=pause.status,
            )
            heartbeat = Heartbeat(
                config=lambda: live.config,
                agent_id=self.agent_id,
                token=live.token,
                network=live.network,
                leases=self._leases,
                contact=self._contact,
                meter=meter,
                clock=self._clock,
                main_loop=loop,
                on_death=self._fail,
            )
            poller = Poller(
                config=lambda: live.config,
                agent_id=self.agent_id,
                connection=connection,
                contact=self._contact,
                registration=registration,
                pause=pause,
                leases=self._leases,
                spool=spool,
                delivery=delivery,
                runner=runner,
                heartbeat=heartbeat,
                meter=meter,
                clock=self._clock,
                back_off=back_off,
                on_ready=self._ready,
            )
            control = Control(control_socket(config, os.environ))

            async def status() -> Mapping[str, Any]:
                from arc_agent.control.status import Parts, facts  # only who is asked pays for it

                return await facts(
                    Parts(
                        agent_id=self.agent_id,
                        started_at=started_at,
                        live=live,
                        clock=self._clock,
                        contact=self._contact,
                        leases=self._leases,
                        runner=runner,
                        spool=spool,
                        gate=gate,
                        lines=lines,
                        pause=pause,
                        event_sender=event_sender,
                        poller=poller,
                    )
                )

            register(control, gate=gate, pause=pause, audit=audit, halt=runner.halt, status=status)
            await control.open()
            stack.push_async_callback(control.close)
            await meter.open(runner=runner, spool=spool, contact=self._contact, pause=pause)
            stack.push_async_callback(meter.close)
            pause.on_change(registration.changed)
            pause.on_change(poller.wake)
            self._say_policy(audit)
            heartbeat.start()
            stack.callback(heartbeat.stop)
            self._contact.on_back(lambda: call_in(loop, delivery.kick))
            self._contact.on_back(lambda: call_in(loop, event_sender.kick))
            spool.on_change(lambda: self._fail() if spool.failure is not None else None)

            def apply() -> None:
                transfer.configure(live.config.transfer)
                spool.configure(live.config.spool)
                registration.changed()
                poller.wake()
                slots.look()
                gate.changed()
                lines.changed()
                self._say_policy(audit)

            self._apply = apply
            if handles_signals:
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(number, self._signalled)
                loop.add_signal_handler(signal.SIGHUP, self.reload)
                process.keep_signals((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
            await self._live_and_stop(poller, runner, delivery, event_sender, spool)
            if self._once is not None:
                self._once.left = len(spool)
                self._once.refusal = _refusal(pause)
            self.has_abandoned = runner.has_abandoned or not await self._work_ends()
            return _BROKEN if self._is_broken else _OK

    async def _live_and_stop(
        self,
        poller: Poller,
        runner: Runner,
        delivery: Delivery,
        event_sender: EventSender,
        spool: Spool,
    ) -> None:
        """The loops, and their end in order."""
        async with asyncio.TaskGroup() as loops:
            delivering = loops.create_task(delivery.run(), name="delivery")
            speaking = loops.create_task(event_sender.run(), name="events")
            pulses = {"poller": poller.pulse, "delivery": delivery.pulse}
            watching = loops.create_task(
                systemd.watch(pulses, lambda: self._status(runner, spool)), name="watch"
            )
            async with asyncio.TaskGroup() as work:
                work.create_task(self._poll(poller, runner, work), name="poller")
                await self._stop.wait()
                drain = self._live.config.drain
                grace = self._live.config.handlers.grace_seconds
                systemd.stopping(drain.seconds + grace + drain.flush_seconds + _STOP_SLACK_SECONDS)
                log.info("stopping", running=runner.running, drain_seconds=drain.seconds)
                poller.stop()
                await runner.drain(drain.seconds)
            await delivery.flush(drain.flush_seconds)
            delivering.cancel()
            speaking.cancel()
            watching.cancel()
        log.info("stopped", done=runner.done)

    async def _poll(self, poller: Poller, runner: Runner, work: asyncio.TaskGroup) -> None:
        """Ask for work until stopped, or once."""
        if self._once is None:
            await poller.run(work)
            return
        await self._once.run(poller, runner, work)
        self._stop.set()

    def _status(self, runner: Runner, spool: Spool) -> str:
        """What `systemctl status` shows."""
        contact = self._contact
        answered_at = contact.answered_at
        return systemd.status_text(
            running=runner.running,
            done=runner.done,
            waiting=len(spool),
            answered_seconds_ago=None if answered_at is None else self._clock() - answered_at,
            is_lost=contact.is_lost,
        )

    async def _work_ends(self) -> bool:
        """Whether all threads of handlers (`asyncio.to_thread`) and of ours are done."""
        threads = [each for each in threading.enumerate() if each.name.startswith("work_")]
        ending = asyncio.ensure_future(in_thread(self._work.shutdown, "shutdown"))
        await asyncio.wait({ending}, timeout=_LAST_WORK_SECONDS)
        return not any(each.is_alive() for each in threads)

    async def _open_audit(self, pause: Pause) -> Audit | None:
        """The audit log; while it cannot write, no work is taken on. Raises AuditError."""
        config = self._live.config
        if not config.audit.enabled:
            return None
        audit = Audit(
            audit_directory(config, os.environ),
            config.audit,
            logs_lines="JOURNAL_STREAM" in os.environ,
        )
        await audit.open(
            on_trouble=lambda reason: pause.trouble("audit", reason),
            on_failure=self._fail,
            agent_id=self.agent_id,
            version=__version__,
        )
        return audit

    async def _remember(self, gate: Gate, audit: Audit | None) -> None:
        """Let limits by the hour hold over a restart."""
        policy = self._live.policy
        if audit is None or policy is None or all(r.per_hour is None for r in policy.rules):
            return
        from arc_agent.guard.audit_reader import started_since  # only who limits pays for it

        since = datetime.now(UTC) - timedelta(hours=1)
        gate.remember(await asyncio.to_thread(list, started_since(audit.directory, since)))

    def _meter(self) -> Meter:
        """Who counts: nobody, unless there is somebody to tell."""
        listen = self._live.config.metrics.listen
        if listen is None or self._once is not None:
            return Meter()
        from arc_agent.control.metrics import PrometheusMeter  # only who asks for it pays for it

        return PrometheusMeter(listen)

    def _say_policy(self, audit: Audit | None) -> None:
        """Which rules are in force, here and in the audit log."""
        policy = self._live.policy
        if policy is not None:
            log.info("policy.in_force", file=policy.source, rules=len(policy.rules))
        if audit is not None:
            audit.note(
                "policy",
                rules=None if policy is None else len(policy.rules),
                file_sha256=None if policy is None else policy.sha256,
            )

    async def _answer_left(self, journal: Journal, spool: Spool, signatures: Signatures) -> None:
        """Answer what must not be run again and was not ended. Raises SpoolError, NoncesError."""
        keep_days = self._live.config.handlers.journal_days
        try:
            await answer_left(journal, spool, keep_days, signatures.ended_before)
        except sqlite3.Error as error:
            may_pass = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
            raise SpoolError(f"the journal cannot be used: {error}", may_pass=may_pass) from None

    def _hold_leases_of(self, spool: Spool) -> None:
        """Leases of an earlier process whose results wait: renewed until these are delivered."""
        for entry in spool.entries():
            held = HeldLease(
                lease_id=entry.lease_id,
                command_id=entry.command_id,
                command=entry.command,
                attempt=entry.attempt,
                asked_at=self._clock(),
                seconds=0.0,
            )
            held.finish()
            self._leases.add(held)

    def _ready(self) -> None:
        """It polls."""
        config = self._live.config
        systemd.ready()
        log.info(
            "ready",
            agent_id=self.agent_id,
            version=__version__,
            server=config.server.url,
            deployment=config.deployment_id,
            handlers=len(self._live.registry),
        )


def _refusal(pause: Pause) -> str | None:
    """Why no work is welcome, if so."""
    said = pause.status()
    if said is None:
        return None
    reasons = "; ".join(f"{part}: {reason}" for part, reason in sorted(pause.troubles.items()))
    return reasons or f"it is {said.state}" + (f" ({said.note})" if said.note else "")
