"""Blobs in the data directory, reached through signed URLs of the server itself.

A blob is written to a temporary name, fsynced and renamed: it is there whole or not at all, also
after a power cut. All file I/O runs in threads of its own.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import structlog

from arc_protocol.errors import (
    ArcError,
    Conflict,
    InsufficientStorage,
    NotFound,
    PayloadTooLarge,
    StorageOperationFailed,
    Unavailable,
)
from arc_protocol.messages.bodies import HttpBackend, PresignedRequest
from arc_runtime.directories import make_directory
from arc_server.blobs import collection
from arc_server.blobs.files import BlobFiles, Directories, Held, Upload
from arc_server.disk_room import DiskRoom, Reservation
from arc_server.ports.records import Collected
from arc_server.server_keys import BLOB, Signer, limit_parts

log = structlog.get_logger(__name__)

WRITE_BYTES: Final = 1 << 20
"""The part of an upload that is held in memory before it goes to the disk, in one thread hop."""
READ_BYTES: Final = 1 << 18
"""The part of a download that is held in memory."""
TEMPORARY: Final = ".incoming"
"""The directory of unfinished uploads, on the same file system as the rest."""
DEFAULT_THREADS: Final = 4

_PATH: Final = re.compile(r"[A-Za-z0-9_-]{1,128}(?:/[A-Za-z0-9_-]{1,128}){0,7}")
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE})
"""Passing shortages: worth another try later, and nothing is broken."""
_METHODS: Final = {"get": "GET", "put": "PUT"}

P = ParamSpec("P")
T = TypeVar("T")


class LocalBlobStore:
    """A local blob store fulfils BlobStore on a directory that belongs to this process alone."""

    def __init__(
        self,
        root: Path,
        signer: Signer,
        threads: int = DEFAULT_THREADS,
        room: DiskRoom | None = None,
    ) -> None:
        """Take the directory over: uploads that a dead process left unfinished are removed.

        `room` is asked before blobs are written; None: the disk alone decides.

        Raises OSError when the directory cannot be made or written.
        """
        self.root = root
        self._directories = Directories(root)
        self._room = room
        self._temporary = root / TEMPORARY
        self._signer = signer
        self._writes: dict[str, asyncio.Timeout] = {}
        """By path, the write that goes on: each is ended by the next."""
        self._unfinished: set[Path] = set()
        """The files of the writes that go on."""
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="blob")
        make_directory(root)
        self._temporary.mkdir(mode=0o700, exist_ok=True)
        for leftover in self._temporary.iterdir():
            leftover.unlink()

    async def write(
        self,
        path: str,
        chunks: AsyncIterator[bytes],
        max_bytes: int,
        *,
        expected_bytes: int = 0,
        is_result: bool = False,
    ) -> int:
        """Store a blob whole or not at all, durable before it returns. Return its size in bytes.

        A later write of the path ends this one with a Conflict: its client may have gone unnoticed,
        and the other may be its second try.

        Raises PayloadTooLarge past `max_bytes`, Conflict when the blob is sealed, NotFound when
        the path is outside the grammar, InsufficientStorage when the disk has no room,
        Unavailable when files are short, StorageOperationFailed.
        """
        self._place(path)
        reservation = None
        if self._room is not None:
            reservation = self._room.reserve(min(expected_bytes, max_bytes), is_result=is_result)
        try:
            return await self._write_in_turn(path, chunks, max_bytes, reservation)
        finally:
            if reservation is not None:
                reservation.release()

    async def _write_in_turn(
        self,
        path: str,
        chunks: AsyncIterator[bytes],
        max_bytes: int,
        reservation: Reservation | None,
    ) -> int:
        loop = asyncio.get_running_loop()
        former = self._writes.get(path)
        if former is not None and former.when() is None:
            former.reschedule(loop.time())
        turn = self._writes[path] = asyncio.timeout(None)
        try:
            async with turn:
                return await self._write(path, chunks, max_bytes, reservation)
        except TimeoutError:
            raise Conflict("another upload of this body has begun since", path=path) from None
        finally:
            if self._writes.get(path) is turn:
                del self._writes[path]

    async def _write(
        self,
        path: str,
        chunks: AsyncIterator[bytes],
        max_bytes: int,
        reservation: Reservation | None,
    ) -> int:
        temporary = self._temporary / secrets.token_hex(16)
        upload = Upload(temporary, self._place(path))
        self._unfinished.add(temporary)
        held: list[bytes] = []
        held_bytes = size = 0
        try:
            async for chunk in chunks:
                size += len(chunk)
                if size > max_bytes:
                    raise PayloadTooLarge(f"body: more than {max_bytes} bytes", limit=max_bytes)
                if reservation is not None:
                    reservation.write(len(chunk))
                held.append(chunk)
                held_bytes += len(chunk)
                if held_bytes >= WRITE_BYTES:
                    await self._run("write", path, upload.append, held)
                    held, held_bytes = [], 0
            await self._run("write", path, upload.finish, held)
        finally:
            self._unfinished.discard(temporary)
            if not upload.is_done:
                await asyncio.shield(self._run("discard", path, upload.discard))
        return size

    async def read(self, path: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield the bytes from `start` to before `end` in bounded chunks. Raises NotFound."""
        async with self.open(path) as blob:
            async for chunk in blob.chunks(start, blob.size if end is None else end):
                yield chunk

    def open(self, path: str) -> AbstractAsyncContextManager[OpenBlob]:
        """Hold one version of a blob: size and bytes agree even if it is replaced meanwhile.

        Raises NotFound, StorageOperationFailed.
        """
        return self._open(path)

    @asynccontextmanager
    async def _open(self, path: str) -> AsyncGenerator[OpenBlob]:
        place, held = self._place(path), Held()
        try:
            await self._run("read", path, held.take, place)
            if held.handle is None:
                raise NotFound("no such blob", path=path)
            yield OpenBlob(self, path, held.handle)
        finally:
            held.close()

    async def size(self, path: str) -> int | None:
        """Return its bytes, None when there is no such blob."""
        if _PATH.fullmatch(path) is None:
            return None
        return await self._run("size", path, self._place(path).size)

    async def seal(self, path: str) -> None:
        """Let no later write replace the blob. Does nothing when it is sealed. Raises NotFound."""
        if not await self._run("seal", path, self._place(path).seal):
            raise NotFound("no such blob", path=path)

    async def link(self, path: str, to: str) -> None:
        """Let a sealed blob be at a second path too: a hard link, so that no bytes are copied.

        Raises NotFound, Unavailable when the disk is full, StorageOperationFailed.
        """
        temporary = self._temporary / secrets.token_hex(16)
        if not await self._run("link", path, self._place(path).link, self._place(to), temporary):
            raise NotFound("no such blob", path=path)

    async def delete(self, path: str) -> None:
        """Remove a blob if it is there, and the directories that it leaves empty."""
        await self._run("delete", path, self._place(path).delete)

    async def delete_all(self, paths: Sequence[str]) -> bool:
        """Remove blobs, and all blobs below paths that are directories.

        Return False if a backup is being taken: they are left to the collection then.
        """
        places = [self._place(path) for path in paths]
        return await self._run("delete", "", collection.remove, self._directories, places)

    async def directories(self, path: str) -> Sequence[str]:
        """Return the paths of the directories below one that hold blobs."""
        top = self._place(path).blob.with_suffix("")

        def walk() -> list[str]:
            found = os.walk(top)
            return [str(Path(place).relative_to(self.root)) for place, _, files in found if files]

        return await self._run("list", path, walk)

    async def collect(
        self, is_wanted: Callable[[str], Awaitable[bool]], older_than_seconds: float
    ) -> Collected:
        """Remove blobs that were written longer ago and are not wanted, and unfinished uploads
        that a failure has left."""
        before_ns = time.time_ns() - round(older_than_seconds * 1e9)
        found = collection.old_files(self._directories, self._temporary, before_ns)
        files = freed = 0
        while (chunk := await self._run("collect", "", next, found, None)) is not None:
            unwanted = [
                each
                for each in chunk
                if not self._is_in_use(each)
                and not (each.path is not None and await is_wanted(each.path))
            ]
            if not unwanted:
                continue
            removed = await self._run("collect", "", collection.unlink, self._directories, unwanted)
            if removed is None:
                return Collected(files=files, bytes=freed, is_held=True)
            files += len(removed)
            freed += sum(each.size for each in removed)
        return Collected(files=files, bytes=freed)

    def _is_in_use(self, found: collection.OldFile) -> bool:
        return found.path in self._writes or found.file in self._unfinished

    def presign(
        self,
        operation: str,
        path: str,
        base_url: str,
        expires_at: datetime,
        *,
        size: int | None = None,
        by: str | None = None,
    ) -> PresignedRequest:
        """Return a request that may `get` or `put` one blob until then; `base_url` ends in /v1."""
        if operation not in _METHODS:
            raise ValueError(f"cannot presign {operation!r}")
        expires = int(expires_at.timestamp())
        limits = {"size": None if size is None else str(size), "by": by}
        parts = (operation, path, *limit_parts(limits))
        signed = self._signer.sign(BLOB, *parts, expires=expires)
        url = (
            f"{base_url}/blobs/{path}?op={operation}"
            f"&expires={expires}&kid={signed.key_id}&sig={signed.token}"
        )
        url += "".join(f"&{name}={value}" for name, value in limits.items() if value is not None)
        return PresignedRequest(
            backend=HttpBackend(url=url, method=_METHODS[operation], headers={}),
            expiration=datetime.fromtimestamp(expires, UTC),
            operation="get" if operation == "get" else "put",
            path=path,
        )

    async def close(self) -> None:
        """End the threads. Nothing may be in progress."""
        await asyncio.to_thread(self._threads.shutdown)

    def _place(self, path: str) -> BlobFiles:
        """Return where a blob lies. Raises NotFound for a path outside the grammar."""
        if _PATH.fullmatch(path) is None:
            raise NotFound("no such blob", path=path)
        return BlobFiles(self._directories, path)

    async def _run(
        self, doing: str, path: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run in a thread. Cancelled, it waits for the end first: a file in use must not be closed.

        Raises Unavailable or StorageOperationFailed for an OSError.
        """
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait((future,))
            future.exception()
            raise
        except OSError as error:
            raise _failure(doing, path, error) from None


class OpenBlob:
    """An open blob is one version of a blob, held for reading."""

    def __init__(self, store: LocalBlobStore, path: str, handle: int) -> None:
        self._run = store._run  # pyright: ignore[reportPrivateUsage]  # one unit with the store
        self._path = path
        self._handle = handle
        status = os.fstat(handle)
        self.size = status.st_size
        """In bytes."""
        self.etag = f'"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"'
        """Another one for every write; sealing changes nothing."""

    async def chunks(self, start: int, end: int) -> AsyncIterator[bytes]:
        """Yield the bytes from `start` to before `end`.

        Raises StorageOperationFailed, also when the file has become shorter.
        """
        while start < end:
            length = min(READ_BYTES, end - start)
            chunk = await self._run("read", self._path, os.pread, self._handle, length, start)
            if not chunk:
                raise StorageOperationFailed("a blob ends before its end")
            yield chunk
            start += len(chunk)


def _failure(doing: str, path: str, error: OSError) -> ArcError:
    """Return the error for a failed operation; the exact failure is in the log only."""
    log.error("blob.failed", operation=doing, path=path, reason=str(error))
    if error.errno in _NO_ROOM:
        return InsufficientStorage("the disk of the server is full; try again later")
    if error.errno in _NO_FILES:
        return Unavailable("the server has too many files open; try again later")
    return StorageOperationFailed(f"blob {doing} failed")
