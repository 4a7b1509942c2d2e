"""The agent is the life of the process: it starts, works until it is stopped, and drains.

SIGTERM: the poller stops → handlers get their time → the rest is released → the spool is flushed
→ heartbeat and sessions end. A second SIGTERM ends the process at once. SIGHUP reloads.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from arc_agent.assembly import AgentParts, assemble
from arc_agent.guard.pause import Pause
from arc_agent.handlers.calling import in_thread
from arc_agent.handlers.declared.programs import kill_all
from arc_agent.host import systemd
from arc_agent.host.clock import MonotonicClock, boot_seconds
from arc_agent.host.threads import THREAD_PREFIX
from arc_agent.version import __version__
from arc_agent.work.live_config import LiveConfig
from arc_agent.work.once import Once
from arc_protocol.urls import redact
from arc_runtime.children import keep_exit_statuses, keep_signals_apart
from arc_runtime.hang_up import HangUp
from arc_runtime.logs.redaction import mask_known

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_DISK_THREADS: Final = 16
_THREADS_PER_RUN: Final = 8
"""Handlers use the same threads as the agent's disk work (`asyncio.to_thread`)."""
_LAST_WORK_SECONDS: Final = 1.0
_STOP_SLACK_SECONDS: Final = 30.0
"""The longest that releasing, killing and closing take when the agent stops."""
_CONTACT_SECONDS: Final = 10.0
"""The time that a start waits for the server's first answer before it counts as done."""
_OK: Final = 0
_BROKEN: Final = 1


class Agent:
    """One process start of an agent. Its id is never used again."""

    def __init__(
        self, live: LiveConfig, clock: MonotonicClock = boot_seconds, once: Once | None = None
    ) -> None:
        """Prepare the agent. With `once`, it ends by itself after that one round of work."""
        self._live = live
        self._once = once
        self._clock = clock
        self.agent_id = f"{live.agent_name}-{uuid.uuid4().hex[:16]}"
        self._stop = asyncio.Event()
        self._is_broken = False
        self._has_started = False
        """systemd knows that the start is over."""
        self._threads = ThreadPoolExecutor(
            _DISK_THREADS + _THREADS_PER_RUN * live.config.max_concurrent, thread_name_prefix="work"
        )
        self._apply: Callable[[], None] = lambda: None
        self._describe: Callable[[], str] = lambda: "starting"
        self.has_abandoned = False
        """A handler that ignores its cancellation still runs: the process must be ended hard."""

    def stop(self) -> None:
        """Begin to stop."""
        self._stop.set()

    def reload(self) -> None:
        """Read the configuration again. An error in it is logged, and the old one stays."""
        if not self._has_started:  # its notifications would end the start
            self._reload()
            return
        systemd.reloading()
        self._reload()
        systemd.ready()

    def _reload(self) -> None:
        if self._live.reload():
            self._apply()

    async def run(self, *, handles_signals: bool = True) -> int:
        """Live until stopped. Return the exit code. Raises the errors of `assemble`."""
        asyncio.get_running_loop().set_default_executor(self._threads)
        async with AsyncExitStack() as stack:
            parts = await assemble(
                self._live,
                agent_id=self.agent_id,
                clock=self._clock,
                stack=stack,
                serves_metrics=self._once is None,
                on_ready=self._log_ready,
                on_failure=self._fail,
            )
            self._apply = parts.apply
            self._describe = lambda: self._status(parts)
            if handles_signals:
                self._handle_signals(parts)
            await self._work(parts)
            if self._once is not None:
                self._once.undelivered = len(parts.spool)
                self._once.refusal = _refusal(parts.pause)
            has_ended = await self._threads_end()
            self.has_abandoned = parts.runner.abandoned > 0 or not has_ended
            return _BROKEN if self._is_broken else _OK

    async def _work(self, parts: AgentParts) -> None:
        """Run the loops until stopped, and end them in order."""
        runner, poller, delivery = parts.runner, parts.poller, parts.delivery
        async with asyncio.TaskGroup() as loops:
            delivering = loops.create_task(delivery.run(), name="delivery")
            sending = loops.create_task(parts.event_sender.run(), name="events")
            pulses = {"poller": poller.pulse, "delivery": delivery.pulse}
            watching = loops.create_task(systemd.watch(pulses, self._describe), name="watch")
            starting = loops.create_task(self._start_without_contact(), name="starting")
            async with asyncio.TaskGroup() as runs:
                runs.create_task(self._poll(parts, runs), name="poller")
                await self._stop.wait()
                drain = self._live.config.drain
                grace = self._live.config.handlers.grace_seconds
                systemd.stopping(drain.seconds + grace + drain.flush_seconds + _STOP_SLACK_SECONDS)
                log.info("stopping", running=runner.running, drain_seconds=drain.seconds)
                poller.stop()
                await runner.drain(drain.seconds)
            await delivery.flush(drain.flush_seconds)
            await parts.registration.say_goodbye()
            for task in (delivering, sending, watching, starting):
                task.cancel()
        log.info("stopped", done=runner.done)

    async def _poll(self, parts: AgentParts, runs: asyncio.TaskGroup) -> None:
        """Ask for work until stopped, or once."""
        if self._once is None:
            await parts.poller.run(runs)
            return
        await self._once.run(parts.poller, parts.runner, runs)
        self._stop.set()

    async def _threads_end(self) -> bool:
        """Wait a little for all worker threads and handlers' threads. Return True if they ended."""
        names = ("work_", THREAD_PREFIX)
        threads = [each for each in threading.enumerate() if each.name.startswith(names)]
        ending = asyncio.ensure_future(in_thread(self._threads.shutdown, "shutdown"))
        await asyncio.wait({ending}, timeout=_LAST_WORK_SECONDS)
        return not any(each.is_alive() for each in threads)

    def _handle_signals(self, parts: AgentParts) -> None:
        """Stop on SIGTERM and SIGINT, reload on SIGHUP, even if a handler changes the signals.

        A SIGHUP of a terminal that was closed stops, too.
        """
        loop, hang_up = asyncio.get_running_loop(), HangUp()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        loop.add_signal_handler(
            signal.SIGHUP, lambda: self.stop() if hang_up.has_come() else self.reload()
        )
        keep_signals_apart()
        keep_exit_statuses()
        parts.process.keep_signals((signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD))

    def _signalled(self) -> None:
        """Begin to stop; the second time, end at once."""
        if self._stop.is_set():
            log.warning("stop.at_once")
            kill_all()
            os._exit(_BROKEN)
        self._stop.set()

    def _fail(self) -> None:
        """Stop, because a part broke that nothing works without. A restart may mend it."""
        self._is_broken = True
        self._stop.set()

    def _status(self, parts: AgentParts) -> str:
        """Return the line that `systemctl status` shows."""
        state = parts.server.state
        answered_at, trouble = state.answered_at, state.trouble()
        return systemd.status_text(
            running=parts.runner.running,
            done=parts.runner.done,
            waiting=len(parts.spool),
            server=redact(self._live.config.server.url or ""),
            answered_seconds_ago=None if answered_at is None else self._clock() - answered_at,
            trouble=None
            if trouble is None
            else (mask_known(trouble[0]), datetime.now(UTC) - timedelta(seconds=trouble[1])),
            is_refused=state.is_refused,
        )

    async def _start_without_contact(self) -> None:
        """End the start after a while even if the server has not answered.

        What waits for the unit goes on then, and the agent goes on trying.
        """
        await asyncio.sleep(_CONTACT_SECONDS)
        if not self._stop.is_set():
            self._end_start()

    def _end_start(self) -> None:
        """Notify systemd, once, that the start is over."""
        if not self._has_started:
            self._has_started = True
            systemd.ready(self._describe())

    def _log_ready(self) -> None:
        """Log that the server answers, and notify systemd."""
        config = self._live.config
        self._end_start()
        log.info(
            "ready",
            agent_id=self.agent_id,
            version=__version__,
            server=config.server.url,
            deployment=config.deployment_id,
            handlers=len(self._live.registry),
        )


def _refusal(pause: Pause) -> str | None:
    """Return why no work is welcome; None when it is."""
    status = pause.status()
    if status is None:
        return None
    reasons = "; ".join(f"{part}: {reason}" for part, reason in sorted(pause.troubles.items()))
    return reasons or f"it is {status.state}" + (f" ({status.note})" if status.note else "")
