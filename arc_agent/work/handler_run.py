"""HandlerRun calls one handler within its time, and stops it when the command must end.

A handler that ignores its cancellation is abandoned: the run is over, the handler goes on. Its slot
stays taken, because it still uses what the limit is there to protect.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
import structlog

from arc_agent.handlers.calling import Raised, Returned, call_handler
from arc_agent.handlers.context import Context, ParamsSource, Retry
from arc_agent.handlers.no_descriptors import put_off
from arc_agent.handlers.params import convert_params
from arc_agent.handlers.registry import Handler
from arc_agent.host.process_state import ProcessState
from arc_agent.jobs.job import Job
from arc_agent.jobs.lease_table import End, HeldLease
from arc_agent.jobs.outcome import Failed, Succeeded
from arc_agent.jobs.responses import is_small, stored
from arc_agent.jobs.result_files import StoredBody, store_stream
from arc_agent.jobs.spool import Spool
from arc_agent.work.live_config import LiveConfig
from arc_agent.work.run_time import RunTime
from arc_runtime.failpoints import hit

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_SMALL_BYTES: Final = 64 * 1024
"""Params of this size are decoded in the event loop; larger ones in a thread."""
_DESCRIPTOR_SECONDS: Final = 0.5
"""The interval at which a result that found no file descriptor is stored again."""


class Finished(msgspec.Struct, frozen=True):
    """The handler returned or raised in time."""

    value: Returned | Raised


class Stopped(msgspec.Struct, frozen=True):
    """The handler was stopped, or came too late."""

    end: End | None
    abandoned: asyncio.Task[Any] | None = None
    """The task of a handler that ignores its cancellation."""


class HandlerRun:
    """One call of one handler."""

    def __init__(
        self,
        *,
        job: Job,
        held: HeldLease,
        handler: Handler,
        source: ParamsSource,
        context: Context,
        time: RunTime,
        live: LiveConfig,
        spool: Spool,
        process: ProcessState,
    ) -> None:
        """Move large results into the spool; restore `process` after the call."""
        self._job = job
        self._held = held
        self._handler = handler
        self._source = source
        self._context = context
        self._time = time
        self._live = live
        self._spool = spool
        self._process = process

    async def run(self) -> Finished | Stopped:
        """Call the handler, and wait until it is done or stopped."""
        hit("agent.before_handler")
        task = asyncio.create_task(self._call(), name=f"handler:{self._handler.name}")
        self._held.handler_task = task
        if not await self._time.finishes(task, timeout_of(self._handler, self._live)):
            return await self._stop(task)
        value = task.result()
        is_retry = isinstance(value, Raised) and isinstance(value.error, Retry)
        if is_retry and self._held.end is None:
            return Finished(value)  # the lease is held on: nothing is finished
        end = self._held.finish()
        if end is not None:
            self.discard(value)
            return Stopped(end)
        hit("agent.after_handler")
        return Finished(value)

    async def _stop(self, task: asyncio.Task[Returned | Raised]) -> Stopped:
        """Cancel the handler, wait a little, and abandon it if it does not end."""
        self._context.cancelled.set()
        task.cancel()
        grace_seconds = max(self._live.config.handlers.grace_seconds, self._handler.grace_seconds)
        await asyncio.wait({task}, timeout=grace_seconds)
        if task.done():
            self.discard(result_of(task))
            return Stopped(self._held.end)
        log.error(
            "handler.abandoned",
            command=self._held.command,
            command_id=self._held.command_id,
            reason=self._held.end,
            hint="it ignores its cancellation, and keeps its slot until it ends",
        )
        task.add_done_callback(lambda late: self.discard(result_of(late)))
        return Stopped(self._held.end, task)

    def discard(self, value: Returned | Raised | None) -> None:
        """Remove the file of a result that is not delivered."""
        result = value.value if isinstance(value, Returned) else None
        if isinstance(result, Succeeded) and isinstance(result.body, StoredBody):
            (self._spool.data_dir.bodies / result.body.name).unlink(missing_ok=True)

    async def _call(self) -> Returned | Raised:
        """Convert the params and call the handler."""
        params = None
        if self._handler.params_name is not None:
            try:
                params = await self._params()
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # models have code of their own, which may even exit
                return Raised(put_off(error, self._handler.name) or error)
        try:
            value = await call_handler(self._handler, params, self._context, self._take_stream)
            if isinstance(value, Raised) and self._handler.idempotent:
                value = Raised(put_off(value.error, self._handler.name) or value.error)
            # A large one is stored within the handler's time: its own code or its file may hang.
            if isinstance(value, Returned) and not is_small(value.value):
                return Returned(await self._store(value.value))
            return value
        finally:
            self._process.restore(self._handler.name, self._context.command_id)

    async def _store(self, value: Any) -> Succeeded | Failed:
        """Store a result for the spool. If no descriptors are left, wait for one."""
        spool, kind, is_waiting = self._spool, self._handler.result_type, False
        while True:
            try:
                return await stored(self._job, value, kind, spool.data_dir, spool.has_room)
            except OSError as error:  # the handler is done: to run it again would be worse
                if not is_waiting:
                    put_off(error, self._handler.name)
                is_waiting = True
                await asyncio.sleep(_DESCRIPTOR_SECONDS)

    async def _params(self) -> Any:
        """Return the params as the handler takes them. Raises the errors of the handler's model."""
        source = self._source
        data = source.read() if source.file is None else await asyncio.to_thread(source.read)
        if len(data) < _SMALL_BYTES:
            return convert_params(data, self._handler)
        return await asyncio.to_thread(convert_params, data, self._handler)

    async def _take_stream(self, chunks: AsyncIterator[Any]) -> Succeeded:
        """Take in the result of a handler that yields it in chunks."""
        spool = self._spool
        return Succeeded(
            await store_stream(spool.data_dir, chunks, self._job.inline_bytes, spool.has_room)
        )


def timeout_of(handler: Handler, live: LiveConfig) -> float | None:
    """Return the shorter of the handler's own time-out and the configuration's."""
    own, common = handler.timeout_seconds, live.config.handlers.timeout_seconds
    if own is None or common is None:
        return common if own is None else own
    return min(own, common)


def result_of(task: asyncio.Task[Returned | Raised]) -> Returned | Raised | None:
    """Return the result of a task; None when it was cancelled or raised."""
    return None if task.cancelled() or task.exception() is not None else task.result()
