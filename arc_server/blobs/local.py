"""Blobs as files below the data directory, reached through signed URLs of the server itself.

A blob is written to a temporary name, fsynced and renamed: it is there whole or not at all, also
after a power cut. The end of the name is its state: `params.blob` may still be replaced,
`params.sealed` never again. Segments of a path hold no dot, so neither can be asked for by name,
and no path leads out of the directory. All file I/O runs in threads of its own.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import secrets
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import structlog

from arc_protocol.errors import (
    ArcError,
    Conflict,
    NotFound,
    PayloadTooLarge,
    StorageOperationFailed,
    Unavailable,
)
from arc_protocol.messages.bodies import HttpBackend, PresignedRequest
from arc_runtime import failpoints
from arc_runtime.directories import make_directory, sync_directory
from arc_server.server_keys import BLOB, Signer

log = structlog.get_logger(__name__)

WRITE_BYTES: Final = 1 << 20
"""How much of an upload is held in memory before it goes to the disk: one thread hop each."""
READ_BYTES: Final = 1 << 18
"""How much of a download is held in memory."""
TEMPORARY: Final = ".incoming"
"""The directory of unfinished uploads, on the same file system as the rest."""
DEFAULT_THREADS: Final = 4

_PATH: Final = re.compile(r"[A-Za-z0-9_-]{1,128}(?:/[A-Za-z0-9_-]{1,128}){0,7}")
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE})
"""Passing shortages: worth another try later, and nothing is broken."""
_MAX_KNOWN_DIRECTORIES: Final = 10_000
_RENAME_TRIES: Final = 3
"""A delete may remove the empty directory that a write has just made."""
_METHODS: Final = {"get": "GET", "put": "PUT"}

P = ParamSpec("P")
T = TypeVar("T")


class LocalBlobStore:
    """`ports.BlobStore` on a directory that belongs to this process alone."""

    def __init__(self, root: Path, signer: Signer, threads: int = DEFAULT_THREADS) -> None:
        """Take the directory over: uploads that a dead process left unfinished are removed.

        Raises OSError when the directory cannot be made or written.
        """
        self.root = root
        self._directories = _Directories(root)
        self._temporary = root / TEMPORARY
        self._signer = signer
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="blob")
        make_directory(root)
        self._temporary.mkdir(mode=0o700, exist_ok=True)
        for leftover in self._temporary.iterdir():
            leftover.unlink()

    async def write(self, path: str, chunks: AsyncIterator[bytes], max_bytes: int) -> int:
        """Store a blob whole or not at all; durable before it returns. The size in bytes.

        Raises PayloadTooLarge past `max_bytes`, Conflict when the blob is sealed, NotFound when
        the path is none of ours, Unavailable when the disk is full, StorageOperationFailed.
        """
        upload = _Upload(self._temporary / secrets.token_hex(16), self._place(path))
        held: list[bytes] = []
        held_bytes = size = 0
        try:
            async for chunk in chunks:
                size += len(chunk)
                if size > max_bytes:
                    raise PayloadTooLarge(f"body: more than {max_bytes} bytes", limit=max_bytes)
                held.append(chunk)
                held_bytes += len(chunk)
                if held_bytes >= WRITE_BYTES:
                    await self._run("write", path, upload.append, held)
                    held, held_bytes = [], 0
            await self._run("write", path, upload.finish, held)
        finally:
            if not upload.is_done:
                await asyncio.shield(self._run("discard", path, upload.discard))
        return size

    async def read(self, path: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end` in bounded chunks. Raises NotFound."""
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
        place, held = self._place(path), _Held()
        try:
            await self._run("read", path, held.take, place)
            if held.handle is None:
                raise NotFound("no such blob", path=path)
            yield OpenBlob(self, path, held.handle)
        finally:
            held.close()

    async def size(self, path: str) -> int | None:
        """Bytes, or None when there is no such blob."""
        if _PATH.fullmatch(path) is None:
            return None
        return await self._run("size", path, self._place(path).size)

    async def seal(self, path: str) -> None:
        """No later write may replace the blob. Does nothing when it is sealed. Raises NotFound."""
        if not await self._run("seal", path, self._place(path).seal):
            raise NotFound("no such blob", path=path)

    async def delete(self, path: str) -> None:
        """Remove a blob if it is there, and the directories that it leaves empty."""
        await self._run("delete", path, self._place(path).delete)

    def presign(
        self, operation: str, path: str, base_url: str, expires_at: datetime
    ) -> PresignedRequest:
        """Leave to `get` or `put` one blob until then, by absolute URL; `base_url` ends in /v1."""
        if operation not in _METHODS:
            raise ValueError(f"cannot presign {operation!r}")
        expires = int(expires_at.timestamp())
        signed = self._signer.sign(BLOB, operation, path, expires=expires)
        url = (
            f"{base_url}/blobs/{path}?op={operation}"
            f"&expires={expires}&kid={signed.key_id}&sig={signed.token}"
        )
        return PresignedRequest(
            backend=HttpBackend(url=url, method=_METHODS[operation], headers={}),
            expiration=datetime.fromtimestamp(expires, UTC),
            operation="get" if operation == "get" else "put",
            path=path,
        )

    async def close(self) -> None:
        """End the threads. Nothing may be in progress."""
        await asyncio.to_thread(self._threads.shutdown)

    def _place(self, path: str) -> _Place:
        """Where a blob lies. Raises NotFound for a path outside the grammar: nothing is there."""
        if _PATH.fullmatch(path) is None:
            raise NotFound("no such blob", path=path)
        return _Place(self._directories, path)

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
    """A blob held open for reading."""

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
        """The bytes from `start` to before `end`. Raises StorageOperationFailed, also when the
        file has become shorter."""
        while start < end:
            length = min(READ_BYTES, end - start)
            chunk = await self._run("read", self._path, os.pread, self._handle, length, start)
            if not chunk:
                raise StorageOperationFailed("a blob ends before its end")
            yield chunk
            start += len(chunk)


class _Place:
    """The files of one path. Blocking; for the threads."""

    def __init__(self, directories: _Directories, path: str) -> None:
        self._directories = directories
        self.blob = directories.root / f"{path}.blob"
        self.sealed = directories.root / f"{path}.sealed"

    def open(self) -> int | None:
        """A file handle, None when there is no blob. The sealed file counts first."""
        for file in (self.sealed, self.blob, self.sealed):  # sealed between the two looks
            with suppress(FileNotFoundError, NotADirectoryError):
                return os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        return None

    def size(self) -> int | None:
        """Bytes, None when there is no blob."""
        handle = self.open()
        if handle is None:
            return None
        try:
            return os.fstat(handle).st_size
        finally:
            os.close(handle)

    def seal(self) -> bool:
        """Whether there is a blob; it is sealed and that is durable."""
        if not self.sealed.exists():
            try:
                self.blob.rename(self.sealed)
            except FileNotFoundError:
                return self.sealed.exists()
        sync_directory(self.sealed.parent)
        return True

    def delete(self) -> None:
        """Remove the files, and every directory up to the root that is empty then."""
        self.sealed.unlink(missing_ok=True)
        self.blob.unlink(missing_ok=True)
        self._directories.remove_empty(self.blob.parent)

    def take(self, temporary: Path) -> None:
        """Put a finished file in its place, durably. Raises Conflict when that is sealed."""
        for _ in range(_RENAME_TRIES):
            if self._try_to_take(temporary):
                break
        else:
            with self._directories.kept():
                if not self._try_to_take(temporary):
                    raise FileNotFoundError(f"{self.blob.parent} was removed by somebody else")
        sync_directory(self.blob.parent)

    def _try_to_take(self, temporary: Path) -> bool:
        """Whether it is in its place: not when its directory was removed meanwhile."""
        if self.sealed.exists():
            raise Conflict("the blob is complete and cannot be replaced")
        try:
            self._directories.make(self.blob.parent)
            temporary.rename(self.blob)
        except (FileNotFoundError, FileExistsError):  # the latter is mkdir's, for one just removed
            self._directories.forget(self.blob.parent)
            if not temporary.exists():
                raise
            return False
        return True


class _Directories:
    """The directories below the root. Blocking; for the threads.

    That one is there does not tell that it is durable: another thread, or a process that died, may
    have made it and not come to the fsync. Only what was synced here is relied on.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._durable: set[Path] = set()
        self._removing = threading.Lock()

    @contextmanager
    def kept(self) -> Generator[None]:
        """While in it, no empty directory is removed."""
        with self._removing:
            yield

    def make(self, directory: Path) -> None:
        """Make a directory and those above it, each durable in the one above.

        Raises FileNotFoundError when one is removed meanwhile; `forget` it then, and try again.
        """
        if directory == self.root or directory in self._durable:
            return
        self.make(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
        sync_directory(directory.parent)
        if len(self._durable) >= _MAX_KNOWN_DIRECTORIES:
            self._durable.clear()
        self._durable.add(directory)

    def forget(self, directory: Path) -> None:
        """It, or one above it, may be gone."""
        while directory != self.root:
            self._durable.discard(directory)
            directory = directory.parent

    def remove_empty(self, directory: Path) -> None:
        """Remove a directory and those above it as far as they are empty."""
        with suppress(OSError), self._removing:
            while directory != self.root:
                self._durable.discard(directory)
                directory.rmdir()
                directory = directory.parent


class _Held:
    """A file handle that is closed even if the one who asked for it is gone when it is there."""

    def __init__(self) -> None:
        self.handle: int | None = None

    def take(self, place: _Place) -> None:
        """Open the blob, for a thread; `handle` stays None when there is none."""
        self.handle = place.open()

    def close(self) -> None:
        """Close it, if it is open."""
        if self.handle is not None:
            os.close(self.handle)


class _Upload:
    """One file on its way in. Blocking; for the threads, one call at a time."""

    def __init__(self, temporary: Path, place: _Place) -> None:
        self._temporary = temporary
        self._place = place
        self._handle: int | None = None
        self.is_done = False
        """The blob stands in its place; nothing is left to clean up."""

    def append(self, chunks: list[bytes]) -> None:
        """Write all of it, opening the file first if need be. Raises OSError, Conflict."""
        if self._handle is None:
            if self._place.sealed.exists():
                raise Conflict("the blob is complete and cannot be replaced")
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._handle = os.open(self._temporary, flags, 0o600)
        rest = memoryview(b"".join(chunks))
        while rest:
            rest = rest[os.write(self._handle, rest) :]

    def finish(self, chunks: list[bytes]) -> None:
        """Write the rest, make it durable and put it in its place. Raises OSError, Conflict."""
        self.append(chunks)
        handle, self._handle = self._handle, None
        assert handle is not None
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        failpoints.hit("blob.before_rename")
        self._place.take(self._temporary)
        self.is_done = True
        failpoints.hit("blob.after_rename")

    def discard(self) -> None:
        """Leave nothing behind."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(OSError):
                os.close(handle)
        self._temporary.unlink(missing_ok=True)


def _failure(doing: str, path: str, error: OSError) -> ArcError:
    """The answer for a failed operation; what exactly failed is in the log only."""
    log.error("blob.failed", operation=doing, path=path, reason=str(error))
    if error.errno in _NO_ROOM:
        return Unavailable("no room to store the body; try again later")
    return StorageOperationFailed(f"blob {doing} failed")
