"""Large results become files, which are durable before a response refers to them."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar, cast

import msgspec

from arc_agent.handlers.shapes import Misfit
from arc_agent.host.data_dir import DataDir, sync_directory
from arc_agent.net.bodies import NoRoom

T = TypeVar("T")

_CHUNK_BYTES: Final = 1024 * 1024
_ROOM_CHECK_BYTES: Final = 16 * 1024 * 1024
_PIECE_BYTES: Final = 64 * 1024
_PIECE_CHUNKS: Final = 4096
"""The parts of a result go to the writer's thread in pieces of so many bytes, or of so many parts:
a hop costs 0.1 ms and more."""
_NO_FILE: Final = "the path leads to no regular file"


class StoredBody(msgspec.Struct, frozen=True):
    """A body that is durable in the directory `bodies`."""

    name: str
    size: int
    sha256: str


class BodyWriter:
    """A writer that takes a result in parts, in memory as long as it fits inline.

    Its methods block: call them in a thread. Raises NoRoom and OSError from `write` and `finish`;
    then `discard` it.
    """

    def __init__(self, data_dir: DataDir, inline_bytes: int, has_room: Callable[[], bool]) -> None:
        self._data_dir = data_dir
        self._inline_bytes = inline_bytes
        self._has_room = has_room
        self._memory = bytearray()
        self._file: BinaryIO | None = None
        self._part: Path | None = None
        self._digest = hashlib.sha256()
        self._size = 0
        self._unchecked = _ROOM_CHECK_BYTES

    def write(self, chunk: bytes | memoryview) -> None:
        """Take the next part."""
        self._size += len(chunk)
        if self._file is None:
            self._memory += chunk
            if len(self._memory) <= self._inline_bytes:
                return
            self._part = self._data_dir.temporary / f"body-{secrets.token_hex(12)}"
            self._file = self._part.open("xb")
            chunk, self._memory = bytes(self._memory), bytearray()
        self._unchecked += len(chunk)
        if self._unchecked >= _ROOM_CHECK_BYTES:
            self._unchecked = 0
            if not self._has_room():
                raise NoRoom("the agent has no room for the result")
        self._digest.update(chunk)
        self._file.write(chunk)

    def finish(self) -> StoredBody | bytes:
        """Return the whole: bytes when it is small, else a file that survives a power cut."""
        if self._file is None or self._part is None:
            return bytes(self._memory)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        body = settle(self._data_dir, self._part, self._size, self._digest.hexdigest())
        self._part = self._data_dir.bodies / body.name
        return body

    def discard(self) -> None:
        """Remove the file, finished or not."""
        if self._file is not None:
            self._file.close()
        if self._part is not None:
            self._part.unlink(missing_ok=True)


def settle(data_dir: DataDir, part: Path, size: int, sha256: str) -> StoredBody:
    """Move an fsynced file into `bodies`, durably."""
    name = secrets.token_hex(16)
    part.rename(data_dir.bodies / name)
    sync_directory(data_dir.bodies)
    return StoredBody(name, size, sha256)


def store_file(
    data_dir: DataDir, source: Path, inline_bytes: int, has_room: Callable[[], bool]
) -> StoredBody | bytes:
    """Take a copy of a regular file in. Blocks. Raises Misfit for another, NoRoom, OSError."""
    writer = BodyWriter(data_dir, inline_bytes, has_room)
    try:
        with _opened(source) as file:
            while chunk := file.read(_CHUNK_BYTES):
                writer.write(chunk)
        return writer.finish()
    except BaseException:
        writer.discard()
        raise


def _opened(path: Path) -> BinaryIO:
    """Open a regular file. Raises Misfit for another, OSError."""
    try:
        # A FIFO would be waited for, a terminal would become the agent's own.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise Misfit(_NO_FILE) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Misfit(_NO_FILE)
    return open(descriptor, "rb")


def store_bytes(
    data_dir: DataDir, data: bytes, inline_bytes: int, has_room: Callable[[], bool]
) -> StoredBody | bytes:
    """Take bytes in. Blocks. Raises NoRoom, OSError."""
    if len(data) <= inline_bytes:
        return data
    writer = BodyWriter(data_dir, inline_bytes, has_room)
    try:
        view = memoryview(data)
        for start in range(0, len(data), _CHUNK_BYTES):
            writer.write(view[start : start + _CHUNK_BYTES])
        return writer.finish()
    except BaseException:
        writer.discard()
        raise


def _bytes_of(chunk: object) -> bytes:
    """Return a part of a result as bytes. Raises TypeError for anything else."""
    if isinstance(chunk, bytes):
        return chunk
    if isinstance(chunk, bytearray | memoryview):
        return bytes(cast("bytearray", chunk))
    raise TypeError(f"the iterator yields {type(chunk).__name__} instead of bytes")


async def _in_thread(call: Callable[..., T], *arguments: Any) -> T:
    """Run a call in a thread. Wait for its end even when cancelled: it may just make a file."""
    running = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        running.exception()  # its outcome does not matter any more
        raise


async def store_stream(
    data_dir: DataDir,
    chunks: AsyncIterator[object],
    inline_bytes: int,
    has_room: Callable[[], bool],
) -> StoredBody | bytes:
    """Take in the parts of an async iterator. Raises NoRoom, OSError, TypeError, and its errors."""
    writer = BodyWriter(data_dir, inline_bytes, has_room)
    piece: list[bytes] = []
    size = 0
    try:
        async for chunk in chunks:
            data = _bytes_of(chunk)
            piece.append(data)
            size += len(data)
            if size >= _PIECE_BYTES or len(piece) >= _PIECE_CHUNKS:
                await _in_thread(writer.write, b"".join(piece))
                piece, size = [], 0
        await _in_thread(writer.write, b"".join(piece))
        return await _in_thread(writer.finish)
    except BaseException:
        writer.discard()
        if isinstance(chunks, AsyncGenerator):
            await cast("AsyncGenerator[object, None]", chunks).aclose()
        raise
