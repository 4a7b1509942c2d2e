"""Bodies on their way: a download as far as it has arrived, and a file as a request's body.

Memory does not grow with the size of a body.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Final

import aiohttp.payload
import msgspec
from aiohttp.abc import AbstractStreamWriter

from arc_agent.net.connection import NoContact
from arc_runtime.network.encodings import unasked_encoding

CHUNK_BYTES: Final = 256 * 1024
_ROOM_CHECK_BYTES: Final = 16 * 1024 * 1024
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.IGNORECASE | re.ASCII)


class TransferRefused(Exception):
    """A transfer can never succeed as asked. `status` is the store's, if the store refused it."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class NoRoom(Exception):
    """The disk has no room for the body."""


class Fetched(msgspec.Struct, frozen=True):
    """A body that has arrived."""

    size: int
    sha256: str


class ArrivingBody:
    """A body as far as it has arrived. `begin` and `write` block for the disk."""

    def __init__(
        self, file: BinaryIO, expected: int | None, max_bytes: int, has_room: Callable[[], bool]
    ) -> None:
        self._file = file
        self._expected = expected
        self._max_bytes = max_bytes
        self._has_room = has_room
        self._digest = hashlib.sha256()
        self._validator: str | None = None
        self._total: str | None = None
        self._is_resumable = False
        self._unchecked = 0
        self._wrong_sizes = 0
        self.size = 0

    @property
    def sha256(self) -> str:
        """Return the digest of what has arrived, in hex."""
        return self._digest.hexdigest()

    def range_headers(self) -> Mapping[str, str]:
        """Return headers that ask for the rest only, if the store takes ranges."""
        if not self.size or not self._is_resumable:
            return {}
        headers = {"Range": f"bytes={self.size}-"}
        return {**headers, "If-Range": self._validator} if self._validator else headers

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Take in the head of an answer, which goes on where the last one ended or starts again.

        Raises TransferRefused, NoContact.
        """
        if encoding := unasked_encoding(headers):
            raise TransferRefused(f"a body in {encoding}, which was not asked for")
        if status == 206:
            place = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
            if place is None or int(place[1]) != self.size or place[3] not in ("*", self._total):
                self._restart()
                raise NoContact("a range that was not asked for")
            return
        self._restart()
        etag = headers.get("ETag", "")  # a weak one (W/"…") does not promise the same bytes
        self._validator = etag if etag.startswith('"') else headers.get("Last-Modified")
        self._total = headers.get("Content-Length")
        takes_ranges = headers.get("Accept-Ranges", "").strip().lower() == "bytes"
        self._is_resumable = takes_ranges and self._total is not None

    def write(self, chunk: bytes) -> None:
        """Keep a part. Raises TransferRefused when it is too much, NoRoom, OSError."""
        self.size += len(chunk)
        limit = self._max_bytes if self._expected is None else self._expected
        if self.size > limit:
            raise TransferRefused(f"the body is larger than {limit} bytes")
        self._unchecked += len(chunk)
        if self._unchecked >= _ROOM_CHECK_BYTES:
            self._unchecked = 0
            if not self._has_room():
                raise NoRoom("no room for the body")
        self._digest.update(chunk)
        self._file.write(chunk)

    def check_complete(self) -> None:
        """Raise NoContact if a part is missing, TransferRefused at the second time."""
        if self._expected is not None and self.size != self._expected:
            reason = f"the body has {self.size} bytes instead of {self._expected}"
            self._is_resumable = False
            self._wrong_sizes += 1
            raise NoContact(reason) if self._wrong_sizes == 1 else TransferRefused(reason)
        self._file.flush()

    def _restart(self) -> None:
        """Forget what has arrived."""
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self.size = self._unchecked = 0
        self._is_resumable = False


class FileBody(aiohttp.payload.Payload):
    """A file as a request's body, of a known length: opened at each try, and read in a thread."""

    def __init__(self, source: Path, size: int) -> None:
        super().__init__(source, content_type="application/octet-stream")
        self._size = self._length = size
        self.sent = 0

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Raise TypeError: a body of bytes is no text."""
        raise TypeError(f"a file cannot be shown as text ({encoding}, {errors})")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send all of the file."""
        await self.write_with_length(writer, self._length)

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        """Send as much of the file as the head promises."""
        self.sent = 0
        left = self._length if content_length is None else min(content_length, self._length)
        file = await asyncio.to_thread(self._value.open, "rb")
        try:
            while left > 0:
                chunk = await asyncio.to_thread(file.read, min(CHUNK_BYTES, left))
                if not chunk:
                    raise OSError("the file has become shorter")
                await writer.write(chunk)
                self.sent += len(chunk)
                left -= len(chunk)
        finally:
            file.close()
