"""Params become a body, from JSON, bytes, a file or a stream, that can be sent again.

A body knows its size before it is sent, and every retry sends the same bytes. A source that cannot
be read twice (a pipe, a generator) is first written to a temporary file, unless it is small.
"""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, Final, cast

import msgspec

from arc_client.errors import InvalidParams

CHUNK_BYTES: Final = 256 * 1024
"""The size of one read and one write."""
SPOOL_IN_MEMORY_BYTES: Final = 1024 * 1024
"""A source that can be read only once is kept in memory up to here, then in a temporary file."""

_PIECE_BYTES: Final = 64 * 1024
"""The chunks of a source are written in pieces of this size: each costs a hop to a thread."""

NO_PARAMS: Final = b"{}"
"""The params of a command that is sent without any."""


class Body:
    """A body has a known size and can be read any number of times, from memory or from a file.

    It takes one reader at a time.
    """

    def __init__(self, source: bytes | IO[bytes], *, start: int = 0, size: int) -> None:
        self._source = source
        self._start = start
        self.size: Final = size
        self.is_in_memory: Final = isinstance(source, bytes)
        """True: `data` does not block."""

    def data(self) -> bytes:
        """Return the whole body; blocks unless it is in memory. Raises what `chunks` does."""
        if isinstance(self._source, bytes):
            return self._source
        try:
            self._source.seek(self._start)
            data = self._source.read(self.size)
        except OSError as error:
            raise _unreadable(error) from error
        if len(data) < self.size:
            raise _shortened()
        return data

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body from its beginning: `size` bytes, even if the file has grown since.

        Raises InvalidParams when the file has become shorter or cannot be read.
        """
        if isinstance(self._source, bytes):
            for begin in range(0, self.size, CHUNK_BYTES):
                yield self._source[begin : begin + CHUNK_BYTES]
            return
        try:
            await asyncio.to_thread(self._source.seek, self._start)
            remaining = self.size
            while remaining:
                chunk = await asyncio.to_thread(self._source.read, min(CHUNK_BYTES, remaining))
                if not chunk:
                    raise _shortened()
                remaining -= len(chunk)
                yield chunk
        except OSError as error:
            raise _unreadable(error) from error


@asynccontextmanager
async def body_of(params: Any) -> AsyncGenerator[Body]:
    """Make a body of a caller's params, for as long as the context lasts.

    Bytes-like objects are sent as they are. A `Path`, a binary file or an async iterable of bytes
    is streamed. Everything else, a `str` too, becomes JSON; msgspec's types count: structs,
    dataclasses, datetimes, UUIDs. A path is opened here and closed afterwards; a caller's own file
    is read from its present position and left open. Raises InvalidParams.
    """
    match params:
        case Body():
            yield params
        case bytes() | bytearray() | memoryview():
            data = bytes(cast("bytes", params))
            yield Body(data, size=len(data))
        case Path():
            with await asyncio.to_thread(open_file, params) as file:
                body, spooled = await asyncio.to_thread(body_of_file, file)
                try:
                    yield body
                finally:
                    _close(spooled)
        case AsyncIterable():
            with tempfile.SpooledTemporaryFile(SPOOL_IN_MEMORY_BYTES) as spool:
                piece = bytearray()
                async for chunk in cast("AsyncIterable[bytes]", params):
                    piece += chunk
                    if len(piece) >= _PIECE_BYTES:
                        await _write(spool.write, bytes(piece))
                        piece.clear()
                await _write(spool.write, bytes(piece))
                yield Body(cast("IO[bytes]", spool), size=spool.tell())
        case _ if callable(getattr(params, "read", None)):
            body, spooled = await asyncio.to_thread(body_of_file, params)
            try:
                yield body
            finally:
                _close(spooled)
        case _:
            yield _json_body(params)


def open_file(path: Path) -> IO[bytes]:
    """Open a file to send. Raises InvalidParams, naming the file."""
    try:
        return path.open("rb")
    except OSError as error:
        raise InvalidParams(f"cannot read {path}: {error.strerror or error}") from error


def body_of_file(file: IO[bytes]) -> tuple[Body, IO[bytes] | None]:
    """Return the rest of a binary file as a body, and a temporary file to close afterwards, if any.

    A regular file is not read here. Anything else is read to its end, which may take as long as
    its writer does. Raises InvalidParams.
    """
    try:
        size = _size_left(file)
        if size is not None:
            return Body(file, start=file.tell(), size=size), None
        return _spooled(file)
    except (OSError, ValueError) as error:
        raise _unreadable(error) from error


def _spooled(file: IO[bytes]) -> tuple[Body, IO[bytes] | None]:
    """Read a stream to its end: into memory while it is small, else into a temporary file."""
    # One read of the system at a time: between two of them an interrupt gets through.
    read: Callable[[int], Any] = getattr(file, "read1", file.read)
    head = bytearray()
    while len(head) <= SPOOL_IN_MEMORY_BYTES:
        chunk = _bytes_of(read(CHUNK_BYTES))
        if not chunk:
            return Body(bytes(head), size=len(head)), None
        head += chunk
    spool = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    try:
        size = spool.write(head)
        del head
        while chunk := _bytes_of(read(CHUNK_BYTES)):
            size += spool.write(chunk)
    except BaseException:
        spool.close()
        raise
    return Body(spool, size=size), spool


def _size_left(file: IO[bytes]) -> int | None:
    """Return how many bytes a file still has; None when it cannot be read twice."""
    try:
        about = os.fstat(file.fileno())
    except (OSError, AttributeError):  # BytesIO and the like have no descriptor
        if not file.seekable():
            return None
        here = file.tell()
        size = file.seek(0, os.SEEK_END) - here
        file.seek(here)
        return max(0, size)
    if not stat.S_ISREG(about.st_mode):
        return None
    return max(0, about.st_size - file.tell())


def _bytes_of(chunk: Any) -> bytes:
    """Return a chunk that is bytes. Raises InvalidParams for a text file's."""
    if not isinstance(chunk, bytes):
        raise InvalidParams("the params are a text file; open it in binary mode")
    return chunk


def _json_body(params: Any) -> Body:
    """Return params as JSON. Raises InvalidParams when they have no form in JSON."""
    try:
        data = msgspec.json.encode(params)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidParams(f"the params have no form in JSON: {error}") from error
    return Body(data, size=len(data))


def _unreadable(error: Exception) -> InvalidParams:
    """Return the error of params that cannot be read."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InvalidParams(f"the params cannot be read: {why}")


def _shortened() -> InvalidParams:
    """Return the error of params that became shorter while they were sent."""
    return InvalidParams("the params became shorter while they were being sent")


async def _write(write: Callable[[bytes], int], chunk: bytes) -> None:
    """Write in a thread: the spool may be on a disk."""
    await asyncio.to_thread(write, chunk)


def _close(file: IO[bytes] | None) -> None:
    """Close a temporary file, which removes it; do nothing without one."""
    if file is not None:
        file.close()
