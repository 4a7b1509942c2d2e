"""The heartbeat renews all held leases, takes in cancellations, and ends leases that lapsed.

It runs in a thread with an event loop and a session of its own: a handler that blocks the main
loop, a busy transfer or a slow disk must not cost a lease (docs/architecture.md, The agent).
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import structlog

from arc_agent.host.clock import MonotonicClock
from arc_agent.host.threads import call_in
from arc_agent.jobs.lease_table import End, HeldLease, LeaseTable
from arc_agent.net.connection import Answer, BackOff, NoContact, Refused, ServerConnection
from arc_agent.net.lease_calls import renew
from arc_agent.net.server_state import ServerState
from arc_agent.work.live_config import LiveConfig
from arc_agent.work.loop_watch import LoopWatch
from arc_protocol.lifecycle import renew_after_seconds
from arc_protocol.messages.leases import RenewRequest, RenewResponse
from arc_protocol.messages.waiting import WaitingLease, WaitingReason

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_AT_ONCE: Final = 1_000
"""Leases in one renewal request; servers bound it at 10,000."""
_TICK_SECONDS: Final = 1.0
"""The interval at which leases and the main loop are checked while any lease is held."""
_RETRY_SECONDS: Final = 0.5
_LONGEST_SECONDS: Final = 30.0
"""The longest back-off, even if the server asks for more. After an outage the server waits 35 s for
renewals before it redelivers."""
_SHORTEST_SECONDS: Final = 0.02
"""The shortest sleep, so that a clock that stands still costs no CPU."""
_SWITCH_SECONDS: Final = 0.001
"""The time for which a busy thread may keep the interpreter from this one. A request takes many
turns: with three busy threads, Python's 5 ms made it 16 ms at the median and 156 at worst, this 9
and 26."""
_GONE: Final = (End.LOST, End.LAPSED)
"""A lease that ended like this is not renewed."""


class Heartbeat:
    """The thread. `start` it before the first lease, `stop` it after the last."""

    def __init__(
        self,
        *,
        live: LiveConfig,
        agent_id: str,
        leases: LeaseTable,
        state: ServerState,
        clock: MonotonicClock,
        main_loop: asyncio.AbstractEventLoop,
        on_renewed: Callable[[int], None],
        on_death: Callable[[], None],
    ) -> None:
        """Call `on_renewed` in the thread and `on_death` in the main loop."""
        self._live = live
        self._main_loop = main_loop
        self._on_renewed = on_renewed
        self._on_death = on_death
        self._agent_id = agent_id
        self._leases = leases
        self._state = state
        self._clock = clock
        self._watch = LoopWatch(main_loop, clock, leases)
        self._random = random.SystemRandom()
        self._thread = threading.Thread(target=self._main, name="heartbeat", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._is_ready = threading.Event()
        self._is_stopping = False
        self._failures = 0
        """Renewals in a row without an answer."""
        self._retry_at = 0.0
        self._is_unreachable = False
        self._has_news = False
        """A command began or ceased to wait for an operator: its sender is to learn of it now."""
        self._asleep_until = math.inf
        """The end of the thread's sleep, on the agent's clock, if nothing wakes it before."""

    def start(self) -> None:
        """Start the thread."""
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_SECONDS))
        self._thread.start()
        self._is_ready.wait()
        self._leases.on_added(self._lease_added)

    def stop(self) -> None:
        """End the thread. Blocks until it has ended, a few seconds at most."""
        self._is_stopping = True
        self._wake_up()
        self._thread.join(timeout=5.0)

    def report_approval(self, lease_id: str, until: datetime | None) -> None:
        """Tell the server at once that a command waits for an operator until then; None: no longer.

        Every renewal repeats it. Safe from any thread.
        """
        lease = self._leases.get(lease_id)
        if lease is not None:
            lease.approval_until = until
            self._has_news = True
            self._wake_up()

    def _lease_added(self, lease: HeldLease) -> None:
        """Wake the thread if it sleeps for longer than a new lease can wait. From any thread."""
        if self._due_at(lease) < self._asleep_until:
            self._wake_up()

    def _wake_up(self) -> None:
        """End the thread's sleep. Safe from any thread."""
        loop, wake = self._loop, self._wake
        if loop is None or wake is None:
            return
        call_in(loop, wake.set)

    def _main(self) -> None:
        """Live in the thread, and report its death."""
        try:
            asyncio.run(self._beat())
        except Exception:  # without renewals the agent must not go on
            log.critical("heartbeat.died", exc_info=True)
            call_in(self._main_loop, self._on_death)
        finally:
            self._is_ready.set()

    async def _beat(self) -> None:
        """Renew leases when it is time, end those that lapsed, sleep while none is held."""
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        connection = ServerConnection(
            self._live.config.server, self._live.token, self._live.network
        )
        await connection.open()
        keeping = asyncio.create_task(self._live.token.keep(), name="credentials")
        self._is_ready.set()
        renewing: asyncio.Task[None] | None = None
        try:
            while not self._is_stopping:
                self._wake.clear()
                self._asleep_until = math.inf  # a lease that is added from here on wakes
                held = self._leases.all()
                if not held:
                    await self._wake.wait()
                    continue
                if renewing is None and self._state.supports("renewal") and self._is_due(held):
                    renewing = asyncio.create_task(self._renew_all(connection))
                self._end_lapsed(held, is_renewing=renewing is not None)
                self._watch.check(self._live.config.watchdog.blocked_seconds)
                seconds = self._pause(held)
                self._asleep_until = self._clock() + seconds
                await self._sleep(self._wake, renewing, seconds)
                if renewing is not None and renewing.done():
                    renewing.result()
                    renewing = None
        finally:
            ending = {keeping} if renewing is None else {keeping, renewing}
            for task in ending:
                task.cancel()
            await asyncio.wait(ending)
            await connection.close()

    async def _sleep(
        self, wake: asyncio.Event, renewing: asyncio.Task[None] | None, seconds: float
    ) -> None:
        """Wait until woken or a renewal ends, for so long at most."""
        waking = asyncio.ensure_future(wake.wait())
        waits: set[asyncio.Future[Any]] = {waking}
        if renewing is not None:
            waits.add(renewing)
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        waking.cancel()

    # When

    def _due_at(self, lease: HeldLease) -> float:
        """Return when a lease is to be renewed."""
        at_most = self._live.config.renew.at_most_seconds
        return lease.asked_at + renew_after_seconds(lease.seconds, at_most=at_most)

    def _is_due(self, held: list[HeldLease]) -> bool:
        """Return True if it is time to renew any lease."""
        now = self._clock()
        lasting = [lease for lease in held if lease.end not in _GONE]
        return now >= self._retry_at and (
            (self._has_news and bool(lasting)) or any(now >= self._due_at(each) for each in lasting)
        )

    def _pause(self, held: list[HeldLease]) -> float:
        """Return how long to sleep: until a renewal or the end of a lease, a second at most."""
        now = self._clock()
        due_at = max(self._retry_at, min(map(self._due_at, held)))
        ends_at = min((lease.ends_at for lease in held if lease.ends_at > now), default=due_at)
        return max(_SHORTEST_SECONDS, min(_TICK_SECONDS, min(due_at, ends_at) - now))

    # Renewing

    async def _renew_all(self, connection: ServerConnection) -> None:
        """Renew all leases once."""
        leases = [lease for lease in self._leases.all() if lease.end not in _GONE]
        self._has_news = False  # what comes from here on is for the next request
        try:
            for start in range(0, len(leases), _AT_ONCE):
                await self._renew(connection, leases[start : start + _AT_ONCE])
        except NoContact as error:
            self._has_news = True  # it may not have arrived
            self._failed(error)
        else:
            self._failures = 0
            self._retry_at = 0.0
            self._is_unreachable = False

    def _failed(self, error: NoContact) -> None:
        """Plan the next try: soon while a lease can still be saved, else by the usual back-off."""
        is_refusal = isinstance(error, Refused)
        self._failures += 1
        self._is_unreachable = not is_refusal
        self._state.failed("renew", error.reason, is_refusal=is_refusal)
        now = self._clock()
        lasting = [lease.seconds for lease in self._leases.all() if lease.ends_at > now]
        cap = self._live.config.server.max_back_off_seconds
        if lasting:
            cap = min(cap, self._live.config.renew.at_most_seconds / 2, min(lasting) / 6)
        back_off = BackOff(self._random, cap, base_seconds=_RETRY_SECONDS)
        self._retry_at = now + min(back_off.seconds(self._failures, error), _LONGEST_SECONDS)

    async def _renew(self, connection: ServerConnection, leases: list[HeldLease]) -> None:
        """Renew some leases in one request. Raises NoContact."""
        config = self._live.config
        request = RenewRequest(
            lease_ids=[lease.lease_id for lease in leases],
            lease_seconds=config.lease.seconds,
            agent_id=self._agent_id,
            waiting=[
                WaitingLease(
                    lease_id=lease.lease_id, reason=WaitingReason.APPROVAL, until=approval_until
                )
                for lease in leases
                if (approval_until := lease.approval_until) is not None
            ]
            or None,
        )
        asked_at = self._clock()
        shortest = min(lease.seconds for lease in leases)
        timeout = max(1.0, min(shortest / 3, config.renew.at_most_seconds))
        answer = await renew(connection, request, timeout_seconds=timeout)
        if isinstance(answer, Answer):
            self._unsupported(answer, leases)
            return
        self._state.succeeded("renew")
        self._state.knows_extensions = True
        for lease in leases:
            self._leases.asked(lease.lease_id, asked_at)
        self._apply(answer, asked_at)

    def _unsupported(self, answer: Answer, leases: list[HeldLease]) -> None:
        """Take in a 404 or 405: the server knows the base protocol only, or a proxy answered.

        Raises NoContact for the latter.
        """
        if self._state.knows_extensions:
            raise NoContact(f"the server answered {answer.status} to a renewal")
        self._state.lacks("renewal")
        for lease in leases:
            lease.changed()  # from now on the lease bounds the handler

    def _apply(self, answer: RenewResponse, asked_at: float) -> None:
        """Take in the server's answer for each lease."""
        self._on_renewed(len(answer.renewed))
        for renewed in answer.renewed:
            self._leases.extend(renewed.lease_id, asked_at, renewed.lease_seconds)
        for lease_id in answer.lost:
            lease = self._leases.get(lease_id)
            if lease is None:
                continue
            if lease.stop(End.LOST):
                log.warning("lease.lost", command_id=lease.command_id, attempt=lease.attempt)
            elif lease.has_result:
                self._leases.remove(lease_id)  # delivered all the same: the server decides
        for lease_id in answer.cancelled:
            self.cancel(lease_id)

    def cancel(self, lease_id: str) -> None:
        """Stop the handler of a lease whose command the sender cancelled."""
        lease = self._leases.get(lease_id)
        if lease is not None and lease.stop(End.CANCELLED):
            log.info("command.cancelled", command_id=lease.command_id)

    # Lapsing

    def _end_lapsed(self, held: list[HeldLease], *, is_renewing: bool) -> None:
        """Stop handlers whose leases lapsed.

        While no renewal reaches the server, it may be down and redeliver nothing: handlers run on
        for a while. After the whole process stood still, the server is asked first.
        """
        now = self._clock()
        can_renew = self._state.supports("renewal")
        run_on = self._live.config.lease.run_on_seconds if self._is_unreachable else 0.0
        for lease in held:
            if lease.end is not None or now < lease.ends_at + run_on:
                continue
            if can_renew and is_renewing:
                continue  # the answer decides
            if lease.has_result:
                self._leases.remove(lease.lease_id)
            elif lease.stop(End.LAPSED):
                log.warning("lease.lapsed", command_id=lease.command_id, attempt=lease.attempt)
