"""Renewing all held leases, hearing cancels, and watching what renewal cannot save.

It runs in a thread with an event loop and a session of its own: a handler that blocks the main
loop, a busy transfer or a slow disk must not cost a single lease (design.md, rules of the agent).
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import traceback
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

import structlog

from arc_agent.config.sections import Config
from arc_agent.host.clock import MonotonicClock
from arc_agent.host.threads import call_in
from arc_agent.jobs.lease_table import End, HeldLease, LeaseTable
from arc_agent.net.connection import Answer, BackOff, NoContact, Refused, ServerConnection
from arc_agent.net.lease_calls import renew
from arc_agent.net.routes import Routes
from arc_agent.net.server_state import ServerState
from arc_agent.net.token import Bearer
from arc_agent.work.meter import Meter
from arc_protocol.lifecycle import renew_after_seconds
from arc_protocol.messages.leases import RenewRequest, RenewResponse

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_AT_ONCE: Final = 1_000
"""Leases in one renewal request; servers bound it at 10,000."""
_TICK_SECONDS: Final = 1.0
"""How often leases and the main loop are looked at, while any lease is held."""
_RETRY_SECONDS: Final = 0.5
_LONGEST_SECONDS: Final = 30.0
"""Whatever a server asks for: after an outage it waits 35 s for renewals before it redelivers."""
_SHORTEST_SECONDS: Final = 0.02
"""No sleep is shorter, whatever the clocks say."""
_SWITCH_SECONDS: Final = 0.001
"""How long a busy thread may keep the interpreter from this one. A request takes many turns: with
three busy threads, Python's 5 ms made it 16 ms at the median and 156 at worst, this 9 and 26."""
_FRAMES: Final = 6
"""Of a blocked loop's stack, how many are told: where it stands, and how it came there."""
_NEVER: Final = (End.LOST, End.LAPSED)


class Heartbeat:
    """The thread. `start` it before the first lease, `stop` it after the last."""

    def __init__(
        self,
        *,
        config: Callable[[], Config],
        agent_id: str,
        token: Bearer,
        network: Routes,
        leases: LeaseTable,
        contact: ServerState,
        meter: Meter,
        clock: MonotonicClock,
        main_loop: asyncio.AbstractEventLoop,
        on_death: Callable[[], None],
    ) -> None:
        self._main_loop = main_loop
        self._on_death = on_death
        self._config = config
        self._agent_id = agent_id
        self._token = token
        self._network = network
        self._leases = leases
        self._contact = contact
        self._meter = meter
        self._clock = clock
        self._watch = LoopWatch(main_loop, clock, leases)
        self._random = random.SystemRandom()
        self._thread = threading.Thread(target=self._main, name="heartbeat", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._is_ready = threading.Event()
        self._is_stopping = False
        self._failures = 0
        """Rounds in a row that brought no answer."""
        self._retry_at = 0.0
        self._is_unreachable = False

    def start(self) -> None:
        """Start the thread."""
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_SECONDS))
        self._thread.start()
        self._is_ready.wait()
        self._leases.wake_with(self._nudge)

    def stop(self) -> None:
        """End the thread. Blocks until it has ended, a few seconds at most."""
        self._is_stopping = True
        self._nudge()
        self._thread.join(timeout=5.0)

    def _nudge(self) -> None:
        """Look again now. From any thread."""
        loop, wake = self._loop, self._wake
        if loop is None or wake is None:
            return
        call_in(loop, wake.set)

    def _main(self) -> None:
        """The thread's life."""
        try:
            asyncio.run(self._live())
        except Exception:  # without renewals the agent must not go on
            log.critical("heartbeat.died", exc_info=True)
            call_in(self._main_loop, self._on_death)
        finally:
            self._is_ready.set()

    async def _live(self) -> None:
        """Renew when it is time, watch in between, sleep when nothing is held."""
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        connection = ServerConnection(self._config().server, self._token, self._network)
        await connection.open()
        keeping = asyncio.create_task(self._token.keep(), name="credentials")
        self._is_ready.set()
        renewing: asyncio.Task[None] | None = None
        try:
            while not self._is_stopping:
                self._wake.clear()
                held = self._leases.all()
                if not held:
                    await self._wake.wait()
                    continue
                if renewing is None and self._contact.supports("renewal") and self._is_due(held):
                    renewing = asyncio.create_task(self._renew_all(connection))
                self._judge(held, is_renewing=renewing is not None)
                self._watch.look(self._config().watchdog.blocked_seconds)
                await self._sleep(self._wake, renewing, self._pause(held))
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
        """Until something happens, for so long at most."""
        waking = asyncio.ensure_future(wake.wait())
        waits: set[asyncio.Future[Any]] = {waking}
        if renewing is not None:
            waits.add(renewing)
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        waking.cancel()

    # When

    def _due_at(self, lease: HeldLease) -> float:
        """When a lease is to be renewed."""
        at_most = self._config().renew.at_most_seconds
        return lease.asked_at + renew_after_seconds(lease.seconds, at_most=at_most)

    def _is_due(self, held: list[HeldLease]) -> bool:
        """Whether it is time for a round, for the sake of any lease."""
        now = self._clock()
        return now >= self._retry_at and any(
            now >= self._due_at(lease) for lease in held if lease.end not in _NEVER
        )

    def _pause(self, held: list[HeldLease]) -> float:
        """How long to sleep: until a renewal or an end, a second at most."""
        now = self._clock()
        due_at = max(self._retry_at, min(map(self._due_at, held)))
        ends_at = min((lease.ends_at for lease in held if lease.ends_at > now), default=due_at)
        return max(_SHORTEST_SECONDS, min(_TICK_SECONDS, min(due_at, ends_at) - now))

    # Renewing

    async def _renew_all(self, connection: ServerConnection) -> None:
        """One round over all that is held."""
        leases = [lease for lease in self._leases.all() if lease.end not in _NEVER]
        try:
            for start in range(0, len(leases), _AT_ONCE):
                await self._renew(connection, leases[start : start + _AT_ONCE])
        except NoContact as error:
            self._failed(error)
        else:
            self._failures = 0
            self._retry_at = 0.0
            self._is_unreachable = False

    def _failed(self, error: NoContact) -> None:
        """Try again: soon while a lease can still be saved, later as everybody does."""
        is_refusal = isinstance(error, Refused)
        self._failures += 1
        self._is_unreachable = not is_refusal
        self._contact.failed("renew", error.reason, is_refusal=is_refusal)
        now = self._clock()
        lasting = [lease.seconds for lease in self._leases.all() if lease.ends_at > now]
        cap = self._config().server.max_back_off_seconds
        if lasting:
            cap = min(cap, self._config().renew.at_most_seconds / 2, min(lasting) / 6)
        back_off = BackOff(self._random, cap, base_seconds=_RETRY_SECONDS)
        self._retry_at = now + min(back_off.seconds(self._failures, error), _LONGEST_SECONDS)

    async def _renew(self, connection: ServerConnection, leases: list[HeldLease]) -> None:
        """One request. Raises NoContact."""
        config = self._config()
        request = RenewRequest(
            lease_ids=[lease.lease_id for lease in leases],
            lease_seconds=config.lease.seconds,
            agent_id=self._agent_id,
        )
        asked_at = self._clock()
        shortest = min(lease.seconds for lease in leases)
        timeout = max(1.0, min(shortest / 3, config.renew.at_most_seconds))
        answer = await renew(connection, request, timeout_seconds=timeout)
        if isinstance(answer, Answer):
            self._unsupported(answer, leases)
            return
        self._contact.succeeded("renew")
        self._contact.knows_extensions = True
        for lease in leases:
            self._leases.asked(lease.lease_id, asked_at)
        self._apply(answer, asked_at)

    def _unsupported(self, answer: Answer, leases: list[HeldLease]) -> None:
        """404 or 405. A page comes from a proxy, unless the server knows part 1 only."""
        if self._contact.knows_extensions:
            raise NoContact(f"the server answered {answer.status} to a renewal")
        self._contact.lacks("renewal")
        for lease in leases:
            lease.changed()  # from now on the lease bounds the handler

    def _apply(self, answer: RenewResponse, asked_at: float) -> None:
        """Take in what the server says about each."""
        self._meter.renewed(len(answer.renewed))
        for renewed in answer.renewed:
            self._leases.extend(renewed.lease_id, asked_at, renewed.lease_seconds)
        for lease_id in answer.lost:
            lease = self._leases.get(lease_id)
            if lease is None:
                continue
            if lease.stop(End.LOST):
                log.warning("lease.lost", command_id=lease.command_id, attempt=lease.attempt)
            elif lease.has_result:
                self._leases.remove(lease_id)  # still handed in; whether it counts, they decide
        for lease_id in answer.cancelled:
            self.cancel(lease_id)

    def cancel(self, lease_id: str) -> None:
        """Somebody wants the command of a lease cancelled."""
        lease = self._leases.get(lease_id)
        if lease is not None and lease.stop(End.CANCELLED):
            log.info("command.cancelled", command_id=lease.command_id)

    # Watching

    def _judge(self, held: list[HeldLease], *, is_renewing: bool) -> None:
        """Stop handlers whose lease is really over.

        While no renewal reaches the server, it may be down and give the command to nobody: handlers
        run on for a while. After a pause of the whole process the server is asked first.
        """
        now = self._clock()
        can_renew = self._contact.supports("renewal")
        run_on = self._config().lease.run_on_seconds if self._is_unreachable else 0.0
        for lease in held:
            if lease.end is not None or now < lease.ends_at + run_on:
                continue
            if can_renew and is_renewing:
                continue  # the answer decides
            if lease.has_result:
                self._leases.remove(lease.lease_id)
            elif lease.stop(End.LAPSED):
                log.warning("lease.lapsed", command_id=lease.command_id, attempt=lease.attempt)


class LoopWatch:
    """Notices that the main loop stands still, and says who is at it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: MonotonicClock, leases: LeaseTable
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._leases = leases
        self._thread_id = threading.get_ident()
        self._asked_at: float | None = None
        self._is_told = False

    def look(self, blocked_seconds: float) -> None:
        """Ask the main loop for a sign of life, or see how long it has owed one."""
        now = self._clock()
        if self._asked_at is None:
            self._asked_at = now
            try:
                self._loop.call_soon_threadsafe(self._alive)
            except RuntimeError:
                self._asked_at = None
            return
        if now - self._asked_at < blocked_seconds or self._is_told:
            return
        self._is_told = True
        log.error("handler.blocking", **self._who(), seconds=round(now - self._asked_at, 1))

    def _alive(self) -> None:
        """The main loop's answer. Runs there."""
        asked_at, self._asked_at = self._asked_at, None
        if self._is_told and asked_at is not None:
            self._is_told = False
            seconds = round(self._clock() - asked_at, 1)
            log.warning("handler.blocking_ended", seconds=seconds)

    def _who(self) -> dict[str, object]:
        """The command whose task runs in the main loop now, and the line it stands at."""
        task = asyncio.current_task(self._loop)
        name = task.get_name() if task is not None else ""
        lease = self._leases.get(name.removeprefix("handler:"))
        frame = sys._current_frames().get(self._thread_id)  # pyright: ignore[reportPrivateUsage]
        # Innermost first, and no source lines: they may hold what a log must not.
        walked = islice(traceback.walk_stack(frame), _FRAMES) if frame is not None else ()
        places = [f"{f.f_code.co_filename}:{line} in {f.f_code.co_name}" for f, line in walked]
        return {
            "command": lease.command if lease is not None else None,
            "command_id": lease.command_id if lease is not None else None,
            "where": places[0] if places else None,
            "stack": places[1:],
            "running": sorted({each.command for each in self._leases.all()}),
        }
