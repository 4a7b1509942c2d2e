"""The assembly builds the parts of an agent, each from the parts before it.

Resources are opened as they are built, and closed by the caller's exit stack in reverse order.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog

from arc_agent.config.places import audit_directory, control_socket, data_directory
from arc_agent.control.status import StatusSources, facts
from arc_agent.control.verbs import register
from arc_agent.guard.audit import Audit
from arc_agent.guard.audit_reader import started_since
from arc_agent.guard.gate import Gate
from arc_agent.guard.pause import Pause
from arc_agent.guard.sealed_params import HostSeals
from arc_agent.guard.signatures import Signatures
from arc_agent.guard.turns import KeyedTurns, Turns
from arc_agent.handlers.lifespans import open_all
from arc_agent.host.clock import MonotonicClock
from arc_agent.host.data_dir import DataDir
from arc_agent.host.disk_thread import DiskThread
from arc_agent.host.process_state import ProcessState
from arc_agent.host.threads import call_in
from arc_agent.jobs.delivery import Delivery
from arc_agent.jobs.lease_table import HeldLease, LeaseTable
from arc_agent.jobs.run_journal import RunJournal, answer_left
from arc_agent.jobs.spool import Spool
from arc_agent.jobs.spool_database import SpoolError
from arc_agent.net.connection import BackOff, ServerConnection
from arc_agent.net.server import Server
from arc_agent.net.server_state import ServerState
from arc_agent.net.transfer import Transfer
from arc_agent.version import __version__
from arc_agent.work.event_sender import EventSender
from arc_agent.work.heartbeat import Heartbeat
from arc_agent.work.lease_intake import LeaseIntake
from arc_agent.work.live_config import LiveConfig
from arc_agent.work.meter import NoMeter
from arc_agent.work.poller import Poller
from arc_agent.work.registration import Registration
from arc_agent.work.run_steps import RunSteps
from arc_agent.work.runner import Runner
from arc_runtime.control_socket import Control

if TYPE_CHECKING:
    from arc_agent.control.metrics import PrometheusMeter

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_HOUR: Final = timedelta(hours=1)


class AgentParts(NamedTuple):
    """The parts that the life of the process works with."""

    live: LiveConfig
    server: Server
    spool: Spool
    pause: Pause
    delivery: Delivery
    event_sender: EventSender
    runner: Runner
    poller: Poller
    registration: Registration
    process: ProcessState
    apply: Callable[[], None]
    """Applies a configuration that was reloaded to all parts."""


async def assemble(
    live: LiveConfig,
    *,
    agent_id: str,
    clock: MonotonicClock,
    stack: AsyncExitStack,
    serves_metrics: bool,
    on_ready: Callable[[], None],
    on_failure: Callable[[], None],
) -> AgentParts:
    """Build an agent, up to the running heartbeat. The caller runs the loops.

    `on_failure` is called, in the main loop, when a part breaks that nothing works without. Raises
    DataDirError, SpoolError, AuditError, UsedSignaturesError, LifespanFailed, ControlError,
    MetricsError.
    """
    config, started_at, loop = live.config, clock(), asyncio.get_running_loop()

    # The disk
    data_dir = stack.enter_context(DataDir(data_directory(config, os.environ)))
    disk = await stack.enter_async_context(DiskThread(on_failure))
    spool = await Spool.open(data_dir, config.spool, disk)
    stack.push_async_callback(spool.close)
    spool.on_failure(on_failure)
    journal = RunJournal(spool)
    pause = Pause(data_dir.path)
    audit = await _open_audit(live, agent_id, pause, disk, stack, on_failure)

    # The server
    server = await _open_server(live, clock, stack)
    await open_all(
        live.registry.lifespans,
        live.registry.provisions,
        stack,
        config.handlers.lifespan_seconds,
    )
    leases = LeaseTable()
    back_off = BackOff(random.SystemRandom(), config.server.max_back_off_seconds)
    delivery = Delivery(
        spool=spool,
        transfer=server.transfer,
        connection=server.connection,
        contact=server.state,
        leases=leases,
        clock=clock,
        back_off=back_off,
    )
    event_sender = EventSender(live=live, server=server)

    # The guard
    slots = Turns(
        lambda: live.config.max_concurrent - runner.abandoned, lambda: runner.wake()
    )  # both run only after the runner is there
    gate = Gate(
        live=live,
        audit=audit,
        slots=slots,
        clock=clock,
        on_approval=lambda lease_id, until: heartbeat.report_approval(lease_id, until),
    )
    stack.callback(gate.close)
    await _remember_starts(live, gate, audit)
    signatures = Signatures(live=live, directory=data_dir.path, on_refused=gate.log_bad_signature)
    stack.callback(signatures.close)
    await signatures.open()
    await _answer_left(live, journal, spool, signatures)
    _hold_leases_of(spool, leases, clock)

    # The work
    handler_turns = KeyedTurns(
        limit_of=live.concurrency_of,
        slots=slots,
        max_waiting=lambda: live.config.handlers.max_waiting,
    )
    process = ProcessState()
    prometheus = _prometheus(config.metrics.listen) if serves_metrics else None
    meter = prometheus or NoMeter()
    steps = RunSteps(
        live=live,
        server=server,
        spool=spool,
        journal=journal,
        gate=gate,
        signatures=signatures,
        seals=HostSeals(live=live, data_dir=data_dir, has_room=spool.has_room),
        handler_turns=handler_turns,
        event_sender=event_sender,
        process=process,
        meter=meter,
        clock=clock,
    )
    runner = Runner(
        steps=steps,
        live=live,
        server=server,
        leases=leases,
        spool=spool,
        journal=journal,
        gate=gate,
        signatures=signatures,
        handler_turns=handler_turns,
        slots=slots,
        meter=meter,
        clock=clock,
    )
    registration = Registration(
        agent_id=agent_id,
        live=live,
        server=server,
        status=pause.status,
        directory=data_dir.path,
    )
    heartbeat = Heartbeat(
        live=live,
        agent_id=agent_id,
        leases=leases,
        state=server.state,
        clock=clock,
        main_loop=loop,
        on_renewed=meter.renewed,
        on_death=on_failure,
    )
    intake = LeaseIntake(
        live=live,
        server=server,
        leases=leases,
        spool=spool,
        runner=runner,
        pause=pause,
        on_cancelled=heartbeat.cancel,
        clock=clock,
    )
    poller = Poller(
        live=live,
        agent_id=agent_id,
        server=server,
        registration=registration,
        pause=pause,
        spool=spool,
        delivery=delivery,
        runner=runner,
        intake=intake,
        meter=meter,
        clock=clock,
        back_off=back_off,
        on_ready=on_ready,
    )

    # Operators and monitors
    sources = StatusSources(
        agent_id=agent_id,
        started_at=started_at,
        live=live,
        clock=clock,
        state=server.state,
        leases=leases,
        runner=runner,
        spool=spool,
        gate=gate,
        handler_turns=handler_turns,
        pause=pause,
        event_sender=event_sender,
        poller=poller,
    )

    async def status() -> Mapping[str, Any]:
        return await facts(sources)

    control = Control(control_socket(config, os.environ))
    register(control, gate=gate, pause=pause, audit=audit, halt=runner.halt, status=status)
    await control.open()
    stack.push_async_callback(control.close)
    if prometheus is not None:
        await prometheus.open(runner=runner, spool=spool, state=server.state, pause=pause)
        stack.push_async_callback(prometheus.close)

    # What one part tells another
    pause.on_change(registration.hurry)
    stack.callback(registration.close)
    pause.on_change(poller.wake)
    server.state.on_back(lambda: call_in(loop, delivery.hurry))
    server.state.on_back(lambda: call_in(loop, event_sender.wake))
    _log_policy(live, audit)
    heartbeat.start()
    stack.callback(heartbeat.stop)

    def apply() -> None:
        server.transfer.configure(live.config.transfer)
        spool.configure(live.config.spool)
        registration.expire()
        poller.wake()
        slots.wake()
        gate.wake()
        handler_turns.wake()
        _log_policy(live, audit)

    return AgentParts(
        live=live,
        server=server,
        spool=spool,
        pause=pause,
        delivery=delivery,
        event_sender=event_sender,
        runner=runner,
        poller=poller,
        registration=registration,
        process=process,
        apply=apply,
    )


async def _open_server(live: LiveConfig, clock: MonotonicClock, stack: AsyncExitStack) -> Server:
    """Open the ways to the server."""
    connection = ServerConnection(live.config.server, live.token, live.network)
    await connection.open()
    stack.push_async_callback(connection.close)
    transfer = Transfer(live.config.transfer, live.config.server, live.network)
    await transfer.open()
    stack.push_async_callback(transfer.close)
    return Server(connection, transfer, ServerState(clock))


async def _open_audit(
    live: LiveConfig,
    agent_id: str,
    pause: Pause,
    disk: DiskThread,
    stack: AsyncExitStack,
    on_failure: Callable[[], None],
) -> Audit | None:
    """Open the audit log. While it cannot write, no work is taken on. Raises AuditError."""
    config = live.config
    if not config.audit.enabled:
        return None
    audit = Audit(
        audit_directory(config, os.environ),
        config.audit,
        disk,
        logs_lines="JOURNAL_STREAM" in os.environ,
    )
    await audit.open(
        on_trouble=lambda reason: pause.set_trouble("audit", reason),
        on_failure=on_failure,
        agent_id=agent_id,
        version=__version__,
    )
    stack.push_async_callback(audit.close)
    return audit


def _prometheus(listen: str | None) -> PrometheusMeter | None:
    """Return the meter behind `metrics.listen`; None when it is not set."""
    if listen is None:
        return None
    from arc_agent.control.metrics import PrometheusMeter  # prometheus_client takes 3.6 MiB

    return PrometheusMeter(listen)


async def _remember_starts(live: LiveConfig, gate: Gate, audit: Audit | None) -> None:
    """Make limits by the hour hold over a restart."""
    policy = live.policy
    if audit is None or policy is None or all(rule.per_hour is None for rule in policy.rules):
        return
    since = datetime.now(UTC) - _HOUR
    gate.remember(await asyncio.to_thread(list, started_since(audit.directory, since)))


async def _answer_left(
    live: LiveConfig, journal: RunJournal, spool: Spool, signatures: Signatures
) -> None:
    """Answer commands that an earlier process started and did not end.

    Raises SpoolError, UsedSignaturesError.
    """
    keep_days = live.config.handlers.journal_days
    try:
        await answer_left(journal, spool, keep_days, signatures.end_commands)
    except sqlite3.Error as error:
        may_pass = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        raise SpoolError(f"the journal cannot be used: {error}", may_pass=may_pass) from None


def _hold_leases_of(spool: Spool, leases: LeaseTable, clock: MonotonicClock) -> None:
    """Hold the leases of an earlier process whose responses wait, so that they are renewed."""
    for entry in spool.entries():
        held = HeldLease(
            lease_id=entry.to.lease_id,
            command_id=entry.to.command_id,
            command=entry.to.command,
            attempt=entry.to.attempt,
            asked_at=clock(),
            seconds=0.0,
        )
        held.finish()
        leases.add(held)


def _log_policy(live: LiveConfig, audit: Audit | None) -> None:
    """Log which rules are in force, here and in the audit log."""
    policy = live.policy
    if policy is not None:
        log.info("policy.in_force", file=policy.source, rules=len(policy.rules))
    if audit is not None:
        audit.note(
            "policy",
            rules=None if policy is None else len(policy.rules),
            file_sha256=None if policy is None else policy.sha256,
        )
