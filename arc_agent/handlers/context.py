"""The context of a run, and the exceptions by which a handler ends it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
import structlog

from arc_agent.handlers.events import HandlerLog, RunEvents
from arc_protocol.messages.base import CommandTarget
from arc_protocol.messages.leases import TraceContext

MAX_RETRY_SECONDS: Final = 7 * 86_400
_CHUNK_BYTES: Final = 256 * 1024


class CommandFailed(Exception):
    """Raise it to end a command with an error code of your own.

    Code, message and details reach the sender. `details` that are not text become JSON text: dicts,
    lists, numbers, msgspec structs, dataclasses, instants. A value inside them that has no form in
    JSON becomes its `str`.
    """

    def __init__(self, code: str, message: str, details: Any = None) -> None:
        if not code:
            raise ValueError("an error needs a code")
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = _text_of(details)


def _text_of(details: Any) -> str | None:
    """Return the details of an error as text."""
    if details is None or isinstance(details, str):
        return details
    try:
        return msgspec.json.encode(details, enc_hook=str).decode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        return repr(details)  # to lose the error for its details would be worse


class Retry(Exception):
    """Raise it to run the command again: its lease is released after `after` seconds.

    Each run is one of the command's attempts. Without another attempt, or with a deadline before
    the next run, the command fails with RETRIES_EXHAUSTED and the message.
    """

    def __init__(self, message: str = "", *, after: float | timedelta = 0.0) -> None:
        super().__init__(message)
        seconds = after.total_seconds() if isinstance(after, timedelta) else float(after)
        if not 0 <= seconds <= MAX_RETRY_SECONDS:
            raise ValueError(f"after: from 0 to {MAX_RETRY_SECONDS} seconds")
        self.message = message
        self.after_seconds = seconds


class ParamsSource:
    """The params as the server sent them: in memory if they are small, else in a file."""

    def __init__(
        self,
        *,
        data: bytes | None = None,
        file: Path | None = None,
        size: int,
        sha256: str | None = None,
    ) -> None:
        self.size = size
        self.file = file
        self.sha256 = sha256
        """The SHA-256 of the bytes, if it was computed while they came."""
        self._data = data

    def open(self) -> BinaryIO:
        """Open the params as a file, for code in threads."""
        return self.file.open("rb") if self.file is not None else BytesIO(self._data or b"")

    def read(self) -> bytes:
        """Return the params, in memory."""
        return self.file.read_bytes() if self.file is not None else self._data or b""


class ParamsStream:
    """The params as a stream of bytes: `async for chunk in ctx.open_params()`.

    A plain function reads `with ctx.open_params().file() as f:`.
    """

    def __init__(self, source: ParamsSource) -> None:
        self._source = source

    @property
    def size(self) -> int:
        """Return the number of bytes."""
        return self._source.size

    def file(self) -> BinaryIO:
        """Open the params as a file, for plain functions. Close it."""
        return self._source.open()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the bytes in parts of 256 KiB at most."""
        file = await asyncio.to_thread(self._source.open)
        try:
            while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
                yield chunk
        finally:
            file.close()

    async def read(self) -> bytes:
        """Return all bytes at once; they must fit into memory."""
        return await asyncio.to_thread(self._source.read)


class Context:
    """One run of one command. Safe from any thread."""

    def __init__(
        self,
        *,
        command_id: str,
        command: str,
        attempt: int,
        deployment_id: str,
        target: CommandTarget | None,
        trace_context: TraceContext | None,
        deadline: datetime | None,
        params: ParamsSource,
        remaining: Callable[[], float],
        is_stopped: Callable[[], bool],
        make_directory: Callable[[], Path],
        announce_restart: Callable[[Any], None],
        events: RunEvents | None = None,
    ) -> None:
        self.command_id: Final = command_id
        self.command: Final = command
        self.attempt: Final = attempt
        """1 for the first run; more if an earlier run was lost, released or retried."""
        self.deployment_id: Final = deployment_id
        self.target: Final = target
        self.trace_context: Final = trace_context
        """The sender's W3C trace context, if it sent one."""
        self.deadline: Final = deadline
        """The sender's deadline on the server's clock. Use `remaining()` to measure time."""
        self.cancelled: Final = asyncio.Event()
        """Set when the run should end, for async functions. Threads read `is_cancelled`."""
        self._events = events
        self._params = params
        self._remaining = remaining
        self._is_stopped = is_stopped
        self._make_directory = make_directory
        self._announce_restart = announce_restart
        self._directory: Path | None = None
        self._lock = threading.Lock()

    @cached_property
    def log(self) -> HandlerLog:
        """Return a logger for the agent's log, with the command's id, and for the command's sender.

        `events.level` in the configuration decides what is sent. Params do not belong here.
        """
        logger = structlog.get_logger().bind(
            command_id=self.command_id, command=self.command, attempt=self.attempt
        )
        return HandlerLog(logger, None if self._events is None else self._events.line)

    @property
    def is_cancelled(self) -> bool:
        """Return True if the run should end: cancelled, out of time, lease lost, or agent
        stopping.
        """
        return self._is_stopped()

    def remaining(self) -> float:
        """Return the remaining seconds of the run's budget; infinite without a bound."""
        return self._remaining()

    def progress(self, done: float, total: float | None = None, text: str | None = None) -> None:
        """Report progress to the sender: `ctx.progress(3, 10, "tables")`.

        Call it as often as you like: the latest report is sent, about once a second. Raises
        ValueError for a number that is not finite.
        """
        if self._events is not None:
            self._events.progress(done, total, text)

    def open_params(self) -> ParamsStream:
        """Return the undecoded params as a stream, which is not held in memory."""
        return ParamsStream(self._params)

    @property
    def directory(self) -> Path:
        """Return a directory of this run, made at first use and removed after the run."""
        with self._lock:
            if self._directory is None:
                self._directory = self._make_directory()
            return self._directory

    def expect_restart(self, result: Any = None) -> None:
        """Announce that this run is about to end the agent, or to reboot its host.

        Durable when it returns. If the agent stops or dies from then on, the command ends with
        `result` (default: `{"restarted": true}`) once the agent is back, and is not run a second
        time. A value that the handler returns or an exception that it raises takes precedence.

        Raises ValueError for a result above 64 KiB, or one that JSON cannot express.
        """
        self._announce_restart({"restarted": True} if result is None else result)

    @property
    def params_source(self) -> ParamsSource:
        """Return the source of the params, for the agent's own handlers."""
        return self._params
