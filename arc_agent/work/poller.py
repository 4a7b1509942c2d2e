"""The poller asks for leases: by long poll, or in intervals from a server that holds no request."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import structlog

from arc_agent.guard.pause import Pause
from arc_agent.host.clock import MonotonicClock
from arc_agent.host.pulse import Pulse
from arc_agent.jobs.delivery import Delivery
from arc_agent.jobs.spool import Spool
from arc_agent.net.connection import BackOff, NoAnswer, NoContact, Refused
from arc_agent.net.lease_calls import LeaseAnswer, ask
from arc_agent.net.server import Server
from arc_agent.work.lease_intake import LeaseIntake
from arc_agent.work.live_config import LiveConfig
from arc_agent.work.meter import Meter
from arc_agent.work.poll_wait import PollInterval, PollWait
from arc_agent.work.registration import Registration
from arc_agent.work.runner import Runner
from arc_protocol.messages.leases import LeaseRequest

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

T = TypeVar("T")

_MAX_LEASES: Final = 1_000
_SETTLE_SECONDS: Final = 30.0
"""The longest wait of new work for the delivery of finished work."""
_SHORT_POLL_SECONDS: Final = 2.0
"""The time that a request which the server does not hold has left when the agent stops: a lease in
an answer that the agent does not read is lost for its whole length."""
_SPARE: Final = 0.05
"""The room beyond the need that ends a full disk, so that the state does not flutter."""
_REGISTER_SECONDS: Final = 20.0
"""The interval in which an agent that takes on no work registers with the reason."""


class Poller:
    """The loop that asks for leases."""

    def __init__(
        self,
        *,
        live: LiveConfig,
        agent_id: str,
        server: Server,
        registration: Registration,
        pause: Pause,
        spool: Spool,
        delivery: Delivery,
        runner: Runner,
        intake: LeaseIntake,
        meter: Meter,
        clock: MonotonicClock,
        back_off: BackOff,
        on_ready: Callable[[], None],
    ) -> None:
        """Call `on_ready` once: when the first request was answered, or when none may be sent."""
        self._live = live
        self._agent_id = agent_id
        self._server = server
        self._registration = registration
        self._pause = pause
        self._spool = spool
        self._delivery = delivery
        self._runner = runner
        self._intake = intake
        self._meter = meter
        self._clock = clock
        self._back_off = back_off
        self._on_ready = on_ready
        self._wait = PollWait(clock)
        self._interval = PollInterval(back_off.source)
        self._woken = asyncio.Event()
        self._is_stopping = False
        self._is_ready = False
        self._is_full = False
        self._registered_at = -math.inf
        self._current: asyncio.Task[Any] | None = None
        """The request or wait that `stop` ends at once."""
        self._is_short_poll = False
        self.held_seconds: float | None = None
        """The time for which the server held the last poll that it answered empty."""
        self.pulse = Pulse(clock)
        """Shows the watchdog that the loop moves."""

    def stop(self) -> None:
        """Ask for nothing more."""
        self.pulse.ends()
        self._is_stopping = True
        self._intake.stop()
        self._woken.set()
        if self._current is None:
            return
        if self._is_short_poll:
            asyncio.get_running_loop().call_later(_SHORT_POLL_SECONDS, self._current.cancel)
        else:
            self._current.cancel()

    def wake(self) -> None:
        """End a wait, because another try may be worth it."""
        self._woken.set()

    async def run(self, group: asyncio.TaskGroup) -> None:
        """Poll until stopped. Leases that come run in `group`."""
        self.pulse.within(_SETTLE_SECONDS)
        await self._settle()
        failures = 0
        while await self._may_ask():
            try:
                seconds = await self._ask(group, self._live.config.poll.wait_seconds)
                failures = 0
            except NoContact as error:
                failures += 1
                seconds = self._back_off.seconds(failures, error)
            await self._sleep(seconds)

    async def once(self, group: asyncio.TaskGroup, seconds: float) -> int:
        """Take on what is ready within so many seconds. Return how many leases came.

        Raises NoContact.
        """
        self.pulse.ends()  # it comes to an end by itself
        await self._settle()
        self._become_ready()
        await self._check_disk()
        until = self._clock() + seconds
        while not (self._is_stopping or self._pause.is_on):
            before = self._intake.count
            rest = await self._ask(group, max(0.0, until - self._clock()))
            left = until - self._clock()
            if self._intake.count > before or left <= 0:
                return self._intake.count - before
            await self._sleep(min(rest, left))
        return 0

    # Until work may be asked for

    async def _may_ask(self) -> bool:
        """Wait until work is welcome and a slot is free. Return False when the agent stops."""
        while not self._is_stopping:
            await self._check_disk()
            if self._pause.is_on:
                await self._rest()
            elif self._runner.free < 1:
                with self.pulse.resting(lambda: self._runner.free < 1):
                    await self._unless_stopping(self._runner.slot())
            else:
                return True
        return False

    async def _check_disk(self) -> None:
        """Pause while the disk has no room for a result."""
        await self._spool.persist()
        lack = self._spool.lack(spare=_SPARE if self._is_full else 0.0)
        if lack is not None and not self._is_full:
            log.error("spool.full", responses=len(self._spool), reason=lack)
        elif lack is None and self._is_full:
            log.info("spool.has_room")
        self._is_full = lack is not None
        self._pause.set_trouble("disk", lack)

    async def _rest(self) -> None:
        """Ask for nothing for a while, and register, so that the server knows the reason."""
        self.pulse.within(self._live.config.server.request_timeout_seconds)
        if self._clock() - self._registered_at >= _REGISTER_SECONDS:
            self._registered_at = self._clock()
            self._registration.expire()
        await self._register()
        self._become_ready()
        seconds = self._pause.wait_seconds()
        if seconds is not None:
            recheck = self._live.config.poll.interval_seconds if self._is_full else seconds
            await self._sleep(min(seconds, recheck))

    async def _settle(self) -> None:
        """Wait until finished work was delivered, or could not be: it goes before new work."""
        if len(self._spool):
            await self._unless_stopping(self._delivered())

    async def _delivered(self) -> None:
        """Wait until each response was tried once, for so long at most."""
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                await self._delivery.settle()
        except TimeoutError:
            pass

    async def _register(self) -> None:
        """Register, if the server does not know the agent as it is now."""
        if self._registration.is_due:
            await self._unless_stopping(self._registration.send())

    # One request

    async def _ask(self, group: asyncio.TaskGroup, longest_wait_seconds: float) -> float:
        """Ask once and take in the answer. Return the seconds until the next request.

        Raises NoContact.
        """
        config, state = self._live.config, self._server.state
        self.pulse.within(_SETTLE_SECONDS + config.server.request_timeout_seconds)
        # The first request of all and the first after an outage are not held: their answers show
        # that the server is there.
        is_probe = state.is_lost or not self._is_ready
        if state.is_lost:
            await self._settle()
        await self._register()
        free = min(self._runner.free, _MAX_LEASES)
        if self._is_stopping or self._pause.is_on or free < 1:
            return 0.0
        longest = min(config.poll.wait_seconds, longest_wait_seconds)
        wait_seconds = 0.0 if is_probe else self._wait.seconds(longest)
        asked_at = self._clock()
        answer = await self._request(free, wait_seconds, asked_at)
        if answer is None:
            return 0.0
        took_seconds = self._clock() - asked_at
        state.succeeded("lease")
        self._become_ready()
        self._wait.ended(wait_seconds, took_seconds)
        self._meter.polled(took_seconds, is_held=wait_seconds > 0)
        if wait_seconds > 0 and not answer.leases:
            self.held_seconds = took_seconds
        await self._intake.take(group, answer, asked_at=asked_at, asked_for=free, pulse=self.pulse)
        if is_probe and self._interval.is_long_poll:
            return 0.0
        return self._interval.after(
            config.poll,
            answer,
            asked_seconds=wait_seconds,
            took_seconds=took_seconds,
            has_extensions=state.knows_extensions or state.supports("agents"),
        )

    async def _request(self, free: int, wait_seconds: float, asked_at: float) -> LeaseAnswer | None:
        """Return the answer; None when the agent stops first. Raises NoContact."""
        config = self._live.config
        request = LeaseRequest(
            deployment_id=config.deployment_id,
            target=config.command_target,
            max_leases=free,
            lease_seconds=config.lease.seconds,
            wait_seconds=wait_seconds if wait_seconds > 0 else None,
            agent_id=self._agent_id,
        )
        connection = self._server.connection
        url = connection.url("commands", "leases")
        timeout = wait_seconds + config.server.request_timeout_seconds
        self.pulse.within(timeout)
        asking = ask(connection, url, request, timeout_seconds=timeout)
        self._is_short_poll = not self._interval.is_long_poll
        try:
            return await self._unless_stopping(asking)
        except NoContact as error:
            if not self._was_cut(error, wait_seconds, self._clock() - asked_at):
                is_refusal = isinstance(error, Refused)
                self._server.state.failed("lease", error.reason, is_refusal=is_refusal)
            raise
        finally:
            self._is_short_poll = False

    def _was_cut(self, error: NoContact, asked_seconds: float, took_seconds: float) -> bool:
        """Return True if a held poll was cut on its way, which does not mean lost contact."""
        if isinstance(error, NoAnswer):
            self._wait.was_lost(asked_seconds)
            return False
        if not self._interval.is_long_poll:
            return False
        return self._wait.broke_off(
            asked_seconds, took_seconds, status=error.status, was_cut=error.was_cut
        )

    def _become_ready(self) -> None:
        """Call `on_ready`, the first time."""
        if not self._is_ready:
            self._is_ready = True
            self._on_ready()

    # Waiting

    async def _unless_stopping(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Return the result of `work`; None when the agent stops first."""
        if self._is_stopping:
            work.close()
            return None
        self._current = task = asyncio.create_task(work)
        try:
            await asyncio.wait({task})
        finally:
            self._current = None
            if not task.done():  # the poller itself is cancelled
                task.cancel()
                await asyncio.wait({task})
        return None if task.cancelled() else task.result()

    async def _sleep(self, seconds: float) -> None:
        """Wait, unless woken."""
        self._woken.clear()
        if self._is_stopping or not seconds:
            await asyncio.sleep(0)  # new runs begin before the next request is prepared
            return
        self.pulse.within(seconds)
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            pass
