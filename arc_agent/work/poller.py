"""Asking for work: by long poll, or as public receivers do from a server that knows none."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any, Final

import structlog

from arc_agent.config.sections import Config
from arc_agent.guard.pause import Pause
from arc_agent.host.clock import Clock
from arc_agent.host.pulse import Pulse
from arc_agent.jobs.delivery import Delivery
from arc_agent.jobs.job import Job
from arc_agent.jobs.lease_table import LeaseTable
from arc_agent.jobs.spool import Spool
from arc_agent.net.connection import BackOff, Connection, NoAnswer, NoContact, Refused, retrying
from arc_agent.net.lease_calls import LeaseAnswer, ask, release
from arc_agent.net.server_state import Contact
from arc_agent.work.heartbeat import Heartbeat
from arc_agent.work.meter import Meter
from arc_agent.work.poll_wait import PollWait
from arc_agent.work.registration import Registration
from arc_agent.work.runner import Runner
from arc_protocol.messages.leases import LeaseInfo, LeaseRequest

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_MAX_LEASES: Final = 1_000
_MOST_GIVEN_BACK: Final = 100
"""Leases that nobody asked for: so many are given back one by one, others lapse by themselves."""
_SETTLE_SECONDS: Final = 30.0
"""How long new work waits for finished work to be handed in first."""
_SHORT_POLL_SECONDS: Final = 2.0
"""How long a request to a server without long poll may go on when the agent stops: a lease in an
answer that nobody reads is lost for its whole length."""
_SPARE: Final = 0.05
"""How much more room than needed there must be again after there was none: it must not flutter."""
_TELL_SECONDS: Final = 20.0
"""How often the server is told that nothing is asked for, and why."""
_PAUSE_SECONDS: Final = 1.0
_PATIENCE: Final = 3
"""How many early answers in a row, each followed by such a pause, a server of ours may give."""


class PollInterval:
    """How long to wait after an answer: not at all when the server does the waiting.

    A server that answers empty much earlier than asked does not know `waitSeconds`: it is polled
    like public receivers do, 5 s doubling to 30 s, until it is seen to wait. One that is known to
    have our additions may do so a few times: it restarts, or something came and was gone.
    """

    def __init__(self, source: random.Random) -> None:
        self._random = source
        self._interval = 0.0
        self._early = 0
        self.is_long_poll = True

    def after(
        self,
        config: Config,
        answer: LeaseAnswer,
        *,
        asked_seconds: float,
        took_seconds: float,
        has_additions: bool,
    ) -> float:
        """The seconds until the next request. `has_additions`: whether the server shows any."""
        if answer.leases or answer.broken or answer.cancelled:
            self._interval = 0.0
            if answer.shows_additions and not self.is_long_poll:
                self._waits()
            return 0.0
        if asked_seconds > 0 and took_seconds >= asked_seconds / 2:
            self._waits()
            return 0.0
        self._early += 1
        if self.is_long_poll and has_additions and asked_seconds > 0 and self._early <= _PATIENCE:
            return self._random.uniform(0, _PAUSE_SECONDS)
        return self._falls_back(config)

    def _waits(self) -> None:
        """The server holds a request until work comes."""
        if not self.is_long_poll:
            log.info("poll.waits")
        self.is_long_poll = True
        self._interval, self._early = 0.0, 0

    def _falls_back(self, config: Config) -> float:
        """The server does not: ask in intervals."""
        if self.is_long_poll:
            log.info("poll.in_intervals", seconds=config.poll.interval_seconds)
        self.is_long_poll = False
        poll = config.poll
        self._interval = min(self._interval * 2 or poll.interval_seconds, poll.max_interval_seconds)
        return self._interval * self._random.uniform(1 - poll.jitter, 1 + poll.jitter)


class Poller:
    """The loop that asks for leases and hands them to the runner."""

    def __init__(
        self,
        *,
        config: Callable[[], Config],
        agent_id: str,
        connection: Connection,
        contact: Contact,
        registration: Registration,
        pause: Pause,
        leases: LeaseTable,
        spool: Spool,
        delivery: Delivery,
        runner: Runner,
        heartbeat: Heartbeat,
        meter: Meter,
        clock: Clock,
        back_off: BackOff,
        on_ready: Callable[[], None],
    ) -> None:
        self._config = config
        self._agent_id = agent_id
        self._connection = connection
        self._contact = contact
        self._registration = registration
        self._pause = pause
        self._leases = leases
        self._spool = spool
        self._delivery = delivery
        self._runner = runner
        self._heartbeat = heartbeat
        self._meter = meter
        self._clock = clock
        self._on_ready = on_ready
        self._back_off = back_off
        self._pace = PollInterval(back_off.source)
        self._hold = PollWait(clock)
        self._draining = asyncio.Event()
        self._woken = asyncio.Event()
        self._is_full = False
        self._told_at = -math.inf
        self._sequence = 0
        self._longest_wait = math.inf
        self.held_seconds: float | None = None
        """For how long the server held the last poll that it answered empty."""
        self.pulse = Pulse(clock)
        """Whether it moves: the watchdog looks."""

    def stop(self) -> None:
        """Ask for nothing more."""
        self.pulse.ends()
        self._draining.set()
        self._woken.set()

    def wake(self) -> None:
        """End a wait: something has changed that makes another try worth it."""
        self._woken.set()

    async def run(self, group: asyncio.TaskGroup) -> None:
        """Poll until stopped. Leases that come in are run in `group`."""
        self.pulse.within(_SETTLE_SECONDS)
        await self._settle()
        self._on_ready()
        while not self._draining.is_set():
            await self._wait_for_capacity()
            if self._draining.is_set():
                return
            seconds = await self._poll(group)
            if seconds:
                await self._sleep(seconds)

    async def once(self, group: asyncio.TaskGroup, seconds: float) -> int:
        """Take on what is ready within so many seconds; how many that were. Raises NoContact."""
        self.pulse.ends()  # it comes to an end by itself
        await self._settle()
        self._on_ready()
        await self._look_at_disk()
        until = self._clock() + seconds
        await self._unless_stopping(self._registration.announce())
        while not (self._draining.is_set() or self._pause.is_on):
            before = self._sequence
            self._longest_wait = max(0.0, until - self._clock())
            pause = await self._ask(group)
            left = until - self._clock()
            if self._sequence > before or left <= 0:
                return self._sequence - before
            await self._sleep(min(pause, left))
        return 0

    async def _poll(self, group: asyncio.TaskGroup) -> float:
        """One answered request; the seconds until the next."""
        async for attempt in retrying(self._sleep, self._back_off):
            with attempt:
                if self._draining.is_set() or self._pause.is_on or not self._spool.has_room():
                    return 0.0
                self.pulse.within(_SETTLE_SECONDS + self._config().server.request_timeout_seconds)
                if self._contact.is_lost:
                    await self._settle()
                await self._unless_stopping(self._registration.announce())
                if self._draining.is_set() or self._pause.is_on:
                    return 0.0
                return await self._ask(group)
        return 0.0

    async def _ask(self, group: asyncio.TaskGroup) -> float:
        """One request. Raises NoContact."""
        config = self._config()
        is_probe = self._contact.is_lost
        """Not to be held: that the server is back is known at once, not at the end of a wait."""
        longest = min(config.poll.wait_seconds, self._longest_wait)
        wait_seconds = 0.0 if is_probe else self._hold.seconds(longest)
        free = min(self._runner.free, _MAX_LEASES)
        if free < 1:
            return 0.0
        request = LeaseRequest(
            deployment_id=config.deployment_id,
            target=config.command_target,
            max_leases=free,
            lease_seconds=config.lease.seconds,
            wait_seconds=wait_seconds if wait_seconds > 0 else None,
            agent_id=self._agent_id,
        )
        self._runner.promised = free
        asked_at = self._clock()
        answer = await self._until_drained(request, wait_seconds)
        if answer is None:
            return 0.0
        self._contact.succeeded("lease")
        took_seconds = self._clock() - asked_at
        self._hold.ended(wait_seconds, took_seconds)
        self._meter.polled(took_seconds, is_held=wait_seconds > 0)
        if wait_seconds > 0 and not answer.leases:
            self.held_seconds = took_seconds
        await self._take(group, answer, asked_at)
        if is_probe and self._pace.is_long_poll:
            return 0.0
        return self._pace.after(
            config,
            answer,
            asked_seconds=wait_seconds,
            took_seconds=took_seconds,
            # Whoever has not said that it lacks them may be one of ours that was not asked yet.
            has_additions=self._contact.knows_additions or self._contact.supports("agents"),
        )

    async def _until_drained(
        self, request: LeaseRequest, wait_seconds: float
    ) -> LeaseAnswer | None:
        """The answer; None when the agent stops first. Raises NoContact."""
        url = self._connection.url("commands", "leases")
        timeout = wait_seconds + self._config().server.request_timeout_seconds
        self.pulse.within(timeout)
        asked_at = self._clock()
        asking = asyncio.create_task(
            ask(self._connection, url, request, timeout_seconds=timeout), name="poll"
        )
        try:
            await self._first(asking)
            if not asking.done() and not self._pace.is_long_poll:
                await asyncio.wait({asking}, timeout=_SHORT_POLL_SECONDS)
        finally:
            asking.cancel()
            await asyncio.wait({asking})
        if asking.cancelled():
            return None
        try:
            return asking.result()
        except NoContact as error:
            if not self._is_cut(error, wait_seconds, self._clock() - asked_at):
                is_refusal = isinstance(error, Refused)
                self._contact.failed("lease", error.reason, is_refusal=is_refusal)
            raise

    def _is_cut(self, error: NoContact, asked_seconds: float, took_seconds: float) -> bool:
        """Whether a held poll was cut off on its way, which is tried again before it is told."""
        if isinstance(error, NoAnswer):
            self._hold.was_lost(asked_seconds)
            return False
        if not self._pace.is_long_poll:
            return False
        return self._hold.broke_off(
            asked_seconds, took_seconds, status=error.status, was_cut=error.was_cut
        )

    async def _first(self, task: asyncio.Task[Any]) -> None:
        """Until the task is done or the agent stops. The task is left as it is."""
        stopping = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()

    async def _unless_stopping(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something, and leave it when the agent stops."""
        task = asyncio.create_task(work)
        try:
            await self._first(task)
        finally:
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.result()

    async def _take(self, group: asyncio.TaskGroup, answer: LeaseAnswer, asked_at: float) -> None:
        """Do what the answer says, each lease for itself."""
        if answer.leases or answer.cancelled:
            self._contact.knows_additions = answer.shows_additions
        for lease_id in answer.cancelled:
            self._heartbeat.cancel(lease_id)
        url = self._connection.url("commands", "leases")
        for broken in answer.broken[: self._runner.promised + _MOST_GIVEN_BACK]:
            log.error("lease.unreadable", command_id=broken.command_id, reason=broken.reason)
            if not await self._runner.refuse(broken, url) and broken.lease_id is not None:
                await release(self._connection, broken.lease_id, "unreadable")
        taken = answer.leases[: self._runner.promised + _MOST_GIVEN_BACK]
        if len(taken) < len(answer.leases):
            log.error("lease.too_many", asked=self._runner.promised, got=len(answer.leases))
        for lease in taken:
            self.pulse.within(self._config().server.request_timeout_seconds)
            await self._take_one(group, lease, answer, asked_at, url)

    async def _take_one(
        self,
        group: asyncio.TaskGroup,
        lease: LeaseInfo,
        answer: LeaseAnswer,
        asked_at: float,
        url: str,
    ) -> None:
        """Run a lease, or give it back when it cannot be run here now."""
        self._sequence += 1
        job = Job(
            lease=lease,
            lease_url=url,
            asked_at=asked_at,
            seconds=lease.lease_seconds or float(self._config().lease.seconds),
            deadline_at=self._deadline(lease.envelope.deadline, answer.server_now),
            directory=self._spool.data_dir.temporary / f"run-{self._sequence}",
        )
        if self._draining.is_set() or self._pause.is_on:
            await release(self._connection, lease.lease_id, "drain")
        elif await self._runner.redeliver(job):
            return
        elif self._leases.of_command(lease.command_id) is not None or self._leases.get(
            lease.lease_id
        ):
            log.warning("lease.duplicate", command_id=lease.command_id, attempt=lease.attempt)
            await release(self._connection, lease.lease_id, "already_running")
        elif self._runner.free < 1 and self._runner.promised < 1:
            await release(self._connection, lease.lease_id, "no_capacity")
        else:
            self._runner.start(group, job)

    def _deadline(self, deadline: datetime | None, server_now: float | None) -> float | None:
        """A deadline on the agent's clock: by the server's own time where it tells it."""
        if deadline is None:
            return None
        now = server_now if server_now is not None else datetime.now(tz=deadline.tzinfo).timestamp()
        return self._clock() + (deadline.timestamp() - now)

    # Waiting

    async def _wait_for_capacity(self) -> None:
        """Until work is welcome, a slot is free and there is room for a result."""
        while not self._draining.is_set():
            await self._look_at_disk()
            if self._pause.is_on:
                await self._rest()
                continue
            if self._runner.free > 0:
                return
            with self.pulse.resting(lambda: self._runner.free < 1):
                await self._unless_stopping(self._runner.slot())

    async def _look_at_disk(self) -> None:
        """Whether a result would have room. The pause has the last word, and tells the server."""
        await self._spool.persist()
        lack = self._spool.lack(spare=_SPARE if self._is_full else 0.0)
        if lack is not None and not self._is_full:
            log.error("spool.full", responses=len(self._spool), reason=lack)
        elif lack is None and self._is_full:
            log.info("spool.has_room")
        self._is_full = lack is not None
        self._pause.trouble("disk", lack)

    async def _rest(self) -> None:
        """Ask for nothing for a while; the server is told why, and that this host is still here."""
        self.pulse.within(self._config().server.request_timeout_seconds)
        if self._clock() - self._told_at >= _TELL_SECONDS:
            self._told_at = self._clock()
            self._registration.changed()
        await self._unless_stopping(self._registration.announce())
        seconds = self._pause.wait_seconds()
        if seconds is not None:
            look_again = self._config().poll.interval_seconds if self._is_full else seconds
            await self._sleep(min(seconds, look_again))

    async def _settle(self) -> None:
        """Finished work goes before new work."""
        if len(self._spool):
            await self._unless_stopping(self._delivered())

    async def _delivered(self) -> None:
        """Until everything was tried once, for so long at most."""
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                await self._delivery.settle()
        except TimeoutError:
            pass

    async def _sleep(self, seconds: float) -> None:
        """Wait, unless woken."""
        self._woken.clear()
        if self._draining.is_set():
            return
        self.pulse.within(seconds)
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            pass
