"""The result reader fetches what a command returned, from its status or from blob storage."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import NamedTuple

from arc_client.bodies.results import body_of_result, inline_bytes
from arc_client.bodies.sealed import SenderSeals
from arc_client.errors import ResultUnreadable
from arc_client.wire.connection import SenderConnection
from arc_client.wire.progress_callbacks import ProgressCallbacks
from arc_client.wire.retry import WaitClock
from arc_client.wire.transfer import Download, Location
from arc_protocol.messages.bodies import InlineBody, StorageBody
from arc_protocol.messages.commands import CommandStatus


class ResultLimits(NamedTuple):
    """The largest results that a client takes, in bytes: into memory, and into files or pipes."""

    memory_bytes: int
    stream_bytes: int


class ResultReader:
    """The result reader opens what is sealed and takes up a download where it broke."""

    def __init__(
        self,
        connection: SenderConnection,
        read_status: Callable[[str], Awaitable[CommandStatus]],
        *,
        seals: SenderSeals | None,
        clock: WaitClock,
        retry_seconds: float,
        limits: ResultLimits,
        callbacks: ProgressCallbacks,
    ) -> None:
        """Take `read_status`, which returns a command's status with a fresh presigned URL."""
        self._connection = connection
        self._read_status = read_status
        self._seals = seals
        self._clock = clock
        self._retry_seconds = retry_seconds
        self._limits = limits
        self._callbacks = callbacks

    async def read(self, status: CommandStatus) -> bytes | bytearray:
        """Return the whole result of a command that has ended. Raises what `chunks` does."""
        # Most results are within the status: no generator is worth its cost for them.
        if self._seals is None and isinstance(body := body_of_result(status), InlineBody):
            return inline_bytes(body, status.command_id)
        data = bytearray()
        max_bytes = min(self._limits.memory_bytes, self._limits.stream_bytes)
        async with aclosing(self.chunks(status, max_bytes)) as chunks:
            async for chunk in chunks:
                data += chunk
        return data

    async def chunks(
        self, status: CommandStatus, max_bytes: int | None = None
    ) -> AsyncGenerator[bytes]:
        """Yield the result of a command that has ended as it arrives, `max_bytes` of it at most.

        Raises CommandFailed, CommandExpired, ResultUnreadable.
        """
        max_bytes = self._limits.stream_bytes if max_bytes is None else max_bytes
        async with aclosing(self._chunks_as_sent(status, max_bytes)) as sent:
            if self._seals is None:
                async for chunk in sent:
                    yield chunk
                return
            async with aclosing(self._seals.opened(status.command_id, sent)) as opened:
                async for chunk in opened:
                    yield chunk

    async def _chunks_as_sent(self, status: CommandStatus, max_bytes: int) -> AsyncGenerator[bytes]:
        """Yield the result as the host sent it, still sealed if it was."""
        body = body_of_result(status)
        command_id = status.command_id
        if isinstance(body, InlineBody):
            yield inline_bytes(body, command_id)
            return
        url = self._connection.url("commands", command_id)
        known: StorageBody | None = body

        async def locate() -> Location:
            nonlocal known
            latest, known = known, None
            if latest is None:  # the URL that we had failed: it may have expired
                found = body_of_result(await self._read_status(command_id))
                latest = found if isinstance(found, StorageBody) else None
            if latest is None or latest.storage_get_request is None:
                raise ResultUnreadable(
                    "the server does not say where the result is", command_id=command_id
                )
            return Location(latest.storage_get_request, url, latest.size)

        async with aclosing(
            Download(
                self._connection,
                locate,
                command_id=command_id,
                clock=self._clock,
                retry_seconds=self._retry_seconds,
                max_bytes=max_bytes,
                callbacks=self._callbacks,
            )
        ) as download:
            async for chunk in download:
                yield chunk
