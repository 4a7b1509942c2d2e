"""The test bench for handlers: run a handler as the agent does, without a server.

    result = await run(generate, {"month": "2026-10"}, provide=[Pool("memory")])
    assert result.json() == {"rows": 1204}

Params are converted and checked, results are encoded and checked, files and streams are read to
their end, exceptions become the errors that a sender would see.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from arc_agent.handlers.calling import Raised, Returned, call_handler
from arc_agent.handlers.context import Context, ParamsSource, Retry
from arc_agent.handlers.params import convert_params
from arc_agent.handlers.registry import Handler, HandlerError, Provisions, handlers_of
from arc_agent.handlers.shapes import write
from arc_agent.host.data_dir import DataDir
from arc_agent.jobs.job import Job
from arc_agent.jobs.outcome import Failed, Succeeded
from arc_agent.jobs.responses import failure, stored
from arc_agent.jobs.result_files import StoredBody, store_stream
from arc_protocol.messages.base import CommandTarget, ResourceType
from arc_protocol.messages.bodies import HttpBackend, InlineBody, PresignedRequest
from arc_protocol.messages.leases import Envelope, LeaseInfo, ResponseHandling

__all__ = ["Result", "Running", "run", "start"]

_INLINE_BYTES: Final = 150_000


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a run, as a sender would see it."""

    data: bytes = b""
    """The result, byte for byte; empty when it failed."""
    code: str | None = None
    """The error's code; None for a run that succeeded."""
    message: str = ""
    details: str | None = None
    retry_after: float | None = None
    """The seconds until the next run, if the handler raised Retry."""
    restart_result: Any = None
    """The result that the handler gave `ctx.expect_restart`."""

    @property
    def is_ok(self) -> bool:
        """Return True if the run succeeded."""
        return self.code is None and self.retry_after is None

    def json(self) -> Any:
        """Return the result as a JSON value. Raises AssertionError when the run failed."""
        if not self.is_ok:
            raise AssertionError(f"{self.code or 'Retry'}: {self.message}")
        return msgspec.json.decode(self.data)


class Running:
    """A run in the background: `async with start(…) as running:`."""

    def __init__(self, context: Context, stopped: threading.Event) -> None:
        self.context: Final = context
        self._stopped = stopped
        self._task: asyncio.Task[Result] | None = None

    def cancel(self) -> None:
        """Cancel the run, as the agent cancels a command.

        The context's flags are set, and an async function gets CancelledError. The result is
        CANCELLED, even if the handler still returns a value.
        """
        self._stopped.set()
        self.context.cancelled.set()
        if self._task is not None:
            self._task.cancel()

    async def result(self, seconds: float = 10.0) -> Result:
        """Wait for the end of the run. Raises TimeoutError."""
        if self._task is None:
            raise RuntimeError("the run has not been started")
        done, _ = await asyncio.wait({self._task}, timeout=seconds)
        if not done:
            raise TimeoutError(f"the handler did not end within {seconds:g} s")
        if self._task.cancelled() or self._stopped.is_set():
            return Result(code="CANCELLED", message="the command was cancelled")
        return self._task.result()

    def begin(self, work: Callable[[], Any]) -> None:
        """Begin the run. Only `start` calls it."""
        self._task = asyncio.create_task(work())

    async def end(self) -> None:
        """End the run. Only `start` calls it."""
        if self._task is not None and not self._task.done():
            self.cancel()
            await asyncio.wait({self._task}, timeout=10.0)


async def run(
    function: Callable[..., Any] | Handler,
    params: Any = None,
    *,
    provide: Iterable[Any] = (),
    attempt: int = 1,
    command_id: str = "cmd_test",
    timeout_seconds: float = 10.0,
) -> Result:
    """Run a handler to its end.

    `params` are encoded as JSON, bytes are sent as they are. `provide` holds values for the
    handler's other parameters, which are found by type.

    Raises HandlerError when the function is no handler, and TimeoutError.
    """
    async with start(
        function, params, provide=provide, attempt=attempt, command_id=command_id
    ) as running:
        return await running.result(timeout_seconds)


@asynccontextmanager
async def start(
    function: Callable[..., Any] | Handler,
    params: Any = None,
    *,
    provide: Iterable[Any] = (),
    attempt: int = 1,
    command_id: str = "cmd_test",
    remaining_seconds: float = float("inf"),
) -> AsyncGenerator[Running]:
    """Run a handler in the background, to cancel or watch it. The end of the block ends the run."""
    handler = _handler(function, list(provide))
    place = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="arc-testing-"))
    data = params if isinstance(params, bytes) else b"{}" if params is None else write(params)
    job = _job(handler.name, command_id, attempt, data, place / "run")
    stopped = threading.Event()
    restart_results: list[Any] = []
    source = ParamsSource(data=data, size=len(data))
    until = time.monotonic() + remaining_seconds

    def make_directory() -> Path:
        job.directory.mkdir(exist_ok=True)
        return job.directory

    context = Context(
        command_id=command_id,
        command=handler.name,
        attempt=attempt,
        deployment_id="test",
        target=job.lease.envelope.target,
        trace_context=None,
        deadline=None,
        params=source,
        remaining=lambda: until - time.monotonic(),
        is_stopped=stopped.is_set,
        make_directory=make_directory,
        announce_restart=restart_results.append,
    )
    running = Running(context, stopped)
    with DataDir(place / "data") as data_dir:

        async def work() -> Result:
            result = await _call(handler, job, source, context, data_dir)
            return msgspec.structs.replace(
                result, restart_result=restart_results[-1] if restart_results else None
            )

        running.begin(work)
        try:
            yield running
        finally:
            await running.end()
            await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)


async def _call(
    handler: Handler, job: Job, source: ParamsSource, context: Context, data_dir: DataDir
) -> Result:
    """Run a handler from its params to its result."""

    async def consume(chunks: AsyncIterator[Any]) -> Succeeded:
        return Succeeded(await store_stream(data_dir, chunks, job.inline_bytes, lambda: True))

    came: Returned | Raised
    try:
        params = convert_params(source.read(), handler) if handler.params_name else None
        came = await call_handler(handler, params, context, consume)
    except Exception as error:  # like the agent: params that cannot be read are the sender's error
        came = Raised(error)
    if isinstance(came, Raised) and isinstance(came.error, Retry):
        return Result(message=came.error.message, retry_after=came.error.after_seconds)
    if isinstance(came, Raised):
        return _failed(failure(job, came.error, sends_tracebacks=True))
    outcome = await stored(job, came.value, handler.result_type, data_dir, lambda: True)
    if isinstance(outcome, Failed):
        return _failed(outcome)
    body = outcome.body
    if isinstance(body, StoredBody):
        return Result(data=await asyncio.to_thread((data_dir.bodies / body.name).read_bytes))
    return Result(data=body)


def _failed(outcome: Failed) -> Result:
    """Return an error as a result."""
    return Result(code=outcome.code, message=outcome.message, details=outcome.details)


def _handler(function: Callable[..., Any] | Handler, provide: list[Any]) -> Handler:
    """Return the handler of a function, with values for its parameters. Raises HandlerError."""
    if isinstance(function, Handler):
        return function
    provisions = Provisions([type(each) for each in provide])
    for each in provide:
        provisions.put(type(each), each)
    found = list(handlers_of(function, "test", provisions))
    if not found:
        raise HandlerError(f"{function!r} is not a handler: is @handler missing?")
    return found[0]


def _job(name: str, command_id: str, attempt: int, data: bytes, directory: Path) -> Job:
    """Return a job with a lease as a server would give it."""
    target = CommandTarget(resource_id="default", resource_type=ResourceType.DAEMON)
    soon = datetime.now(UTC) + timedelta(hours=1)
    nowhere = "http://localhost/"
    envelope = Envelope(
        protocol="arc.v1",
        deployment_id="test",
        target=target,
        command_id=command_id,
        attempt=attempt,
        command=name,
        params=InlineBody.of(data),
        response_handling=ResponseHandling(
            max_inline_bytes=_INLINE_BYTES,
            submit_response_url=nowhere,
            storage_upload_request=PresignedRequest(
                backend=HttpBackend(url=nowhere, method="PUT", headers={}),
                expiration=soon,
                operation="put",
                path="",
            ),
        ),
    )
    lease = LeaseInfo(
        lease_id="lease_test",
        lease_expires_at=soon,
        command_id=command_id,
        attempt=attempt,
        envelope=envelope,
    )
    return Job(
        lease=lease,
        lease_url=nowhere,
        asked_at=0.0,
        seconds=3600.0,
        deadline_at=None,
        directory=directory,
    )
