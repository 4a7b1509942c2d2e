"""What a handler gets besides its params, and how it says that it failed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final

import structlog

from arc_agent.handlers.events import HandlerLog, RunEvents
from arc_protocol.messages.base import CommandTarget
from arc_protocol.messages.leases import TraceContext

MAX_RETRY_SECONDS: Final = 7 * 86_400
_CHUNK_BYTES: Final = 256 * 1024


class CommandFailed(Exception):
    """Raise it to end a command with an error of your own: code and message reach the sender.

    `details` is more text for whoever looks into it, and reaches the sender too.
    """

    def __init__(self, code: str, message: str, details: str | None = None) -> None:
        if not code:
            raise ValueError("an error needs a code")
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


class Retry(Exception):
    """Raise it to have the command come again: the lease is given back after `after` seconds.

    Each time costs one of the command's attempts. When they are used up, or the deadline is nearer
    than that, the command fails with RETRIES_EXHAUSTED and the message.
    """

    def __init__(self, message: str = "", *, after: float | timedelta = 0.0) -> None:
        super().__init__(message)
        seconds = after.total_seconds() if isinstance(after, timedelta) else float(after)
        if not 0 <= seconds <= MAX_RETRY_SECONDS:
            raise ValueError(f"after: from 0 to {MAX_RETRY_SECONDS} seconds")
        self.message = message
        self.after_seconds = seconds


class ParamsSource:
    """The params as they came: in memory when they are small, in a file when they are not."""

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
        """Of the bytes, if it was taken while they came."""
        self._data = data

    def open(self) -> BinaryIO:
        """The params as a file to read, for code in threads."""
        return self.file.open("rb") if self.file is not None else BytesIO(self._data or b"")

    def read(self) -> bytes:
        """All of them, in memory."""
        return self.file.read_bytes() if self.file is not None else self._data or b""


class ParamsStream:
    """The params as bytes, a part at a time: `async for chunk in ctx.open_params()`.

    In a plain function: `with ctx.open_params().file() as f:`.
    """

    def __init__(self, source: ParamsSource) -> None:
        self._source = source

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return self._source.size

    def file(self) -> BinaryIO:
        """A file object, for plain functions. Close it."""
        return self._source.open()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The bytes, in parts of 256 KiB at most."""
        file = await asyncio.to_thread(self._source.open)
        try:
            while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
                yield chunk
        finally:
            file.close()

    async def read(self) -> bytes:
        """All of them at once: they have to fit into memory."""
        return await asyncio.to_thread(self._source.read)


class Context:
    """One run of one command. Its methods may be called from async functions and from threads."""

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
        stopped: threading.Event,
        make_directory: Callable[[], Path],
        announce_restart: Callable[[Any], None],
        events: RunEvents | None = None,
    ) -> None:
        self.command_id: Final = command_id
        self.command: Final = command
        self.attempt: Final = attempt
        """1 at first; more when an earlier run was lost or handed back."""
        self.deployment_id: Final = deployment_id
        self.target: Final = target
        self.trace_context: Final = trace_context
        """The sender's W3C trace context, if it sent one."""
        self.deadline: Final = deadline
        """The sender's, on the server's clock. `remaining()` is what to go by."""
        self.cancelled: Final = asyncio.Event()
        """Set when the run should end. For async functions; threads look at `is_cancelled`."""
        logger = structlog.get_logger().bind(
            command_id=command_id, command=command, attempt=attempt
        )
        self.log: Final = HandlerLog(logger, None if events is None else events.line)
        """Lines for the agent's log, with the command's id, and for the command's sender.

        What is sent from which level on: `events` in the configuration. Params do not belong here.
        """
        self._events = events
        self._params = params
        self._remaining = remaining
        self._stopped = stopped
        self._make_directory = make_directory
        self._announce_restart = announce_restart
        self._directory: Path | None = None
        self._lock = threading.Lock()

    @property
    def is_cancelled(self) -> bool:
        """Whether the run should end: cancelled, out of time, lease lost, or the agent stops."""
        return self._stopped.is_set()

    def remaining(self) -> float:
        """Seconds of the budget that are left; infinite when nothing bounds it."""
        return self._remaining()

    def progress(self, done: float, total: float | None = None, text: str | None = None) -> None:
        """Tell the sender how far this run is: `ctx.progress(3, 10, "tables")`.

        As often as you like; the latest is sent, about once a second. Raises ValueError for what
        is no finite number.
        """
        if self._events is not None:
            self._events.progress(done, total, text)

    def open_params(self) -> ParamsStream:
        """The params as they came, undecoded, without holding them in memory."""
        return ParamsStream(self._params)

    @property
    def directory(self) -> Path:
        """A directory of this run, made at first use; gone after it, result files included."""
        with self._lock:
            if self._directory is None:
                self._directory = self._make_directory()
            return self._directory

    def expect_restart(self, result: Any = None) -> None:
        """Say that this run is about to end the agent, or to reboot its host.

        Durable when it returns. Whenever the agent stops or dies from then on, the command is
        answered with `result` (`{"restarted": true}` when there is none) once it is back, and is
        not run a second time. What the handler itself returns or raises before that counts more.
        Raises ValueError for a result above 64 KiB or that JSON cannot say.
        """
        self._announce_restart({"restarted": True} if result is None else result)

    @property
    def params_source(self) -> ParamsSource:
        """Where the params are; for handlers that come with the agent."""
        return self._params
