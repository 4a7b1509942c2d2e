"""Files of blobs below one root. All of it blocks: it runs in the threads of the blob store.

The end of a file's name is the state of its blob: `params.blob` may still be replaced,
`params.sealed` never again. Segments of a path hold no dot, so that neither can be asked for by
name and no path leads out of the root.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from arc_protocol.errors import Conflict
from arc_runtime import failpoints
from arc_runtime.directories import sync_directory

_MAX_KNOWN_DIRECTORIES: Final = 10_000
_RENAME_TRIES: Final = 3
"""A delete may remove the empty directory that a write has just made."""


class BlobFiles:
    """Blob files are the files of one path: the blob, open or sealed."""

    def __init__(self, directories: Directories, path: str) -> None:
        self._directories = directories
        self.blob = directories.root / f"{path}.blob"
        self.sealed = directories.root / f"{path}.sealed"

    def open(self) -> int | None:
        """Return a file handle, None when there is no blob. The sealed file counts first."""
        for file in (self.sealed, self.blob, self.sealed):  # it may be sealed between the first two
            with suppress(FileNotFoundError, NotADirectoryError):
                return os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        return None

    def size(self) -> int | None:
        """Return the bytes of the blob, None when there is none."""
        handle = self.open()
        if handle is None:
            return None
        try:
            return os.fstat(handle).st_size
        finally:
            os.close(handle)

    def seal(self) -> bool:
        """Seal the blob, durably. Return False when there is none."""
        if not self.sealed.exists():
            try:
                self.blob.rename(self.sealed)
            except FileNotFoundError:
                return self.sealed.exists()
        sync_directory(self.sealed.parent)
        return True

    def link(self, to: BlobFiles, temporary: Path) -> bool:
        """Let the blob be at a second path too, durably. Return False when there is none."""
        for file in (self.sealed, self.blob, self.sealed):
            with suppress(FileNotFoundError, NotADirectoryError):
                os.link(file, temporary, follow_symlinks=False)
                break
        else:
            return False
        try:
            to.take(temporary)
        finally:
            temporary.unlink(missing_ok=True)
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
                    raise FileNotFoundError(f"{self.blob.parent} was removed by another process")
        sync_directory(self.blob.parent)

    def _try_to_take(self, temporary: Path) -> bool:
        """Return False when the directory was removed meanwhile."""
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


class Directories:
    """Directories makes and removes directories below the root.

    A directory that exists may not be durable: another thread, or a process that died, may have
    made it and not come to the fsync. Only what was synced here is relied on.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._durable: set[Path] = set()
        self._removing = threading.Lock()

    @contextmanager
    def kept(self) -> Generator[None]:
        """Keep empty directories from being removed inside the context."""
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
        """Rely no longer on a directory and those above it: one may be gone."""
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


class Held:
    """A held file is closed even if its caller was cancelled while a thread opened it."""

    def __init__(self) -> None:
        self.handle: int | None = None

    def take(self, place: BlobFiles) -> None:
        """Open the blob; `handle` stays None when there is none."""
        self.handle = place.open()

    def close(self) -> None:
        """Close the file if it is open."""
        if self.handle is not None:
            os.close(self.handle)


class Upload:
    """An upload is one file on its way in. One call at a time."""

    def __init__(self, temporary: Path, place: BlobFiles) -> None:
        self._temporary = temporary
        self._place = place
        self._handle: int | None = None
        self.is_done = False
        """True when the blob is in its place and nothing is left to clean up."""

    def append(self, chunks: list[bytes]) -> None:
        """Write chunks, opening the file first if need be. Raises OSError, Conflict."""
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
        """Remove the temporary file."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(OSError):
                os.close(handle)
        self._temporary.unlink(missing_ok=True)
