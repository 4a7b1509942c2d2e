"""Fakes of time, of blob storage, of links and of failure; the rest of these tests is real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any

from arc_protocol.errors import Conflict, NotFound, PayloadTooLarge, StoreUnavailable
from arc_protocol.messages.bodies import HttpBackend, PresignedRequest
from arc_server.ports.records import Collected

CHUNK = 1 << 16


class MemoryBlobs:
    """A blob store in memory. `refuse` names operations that fail with an error, by name."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.sealed: set[str] = set()
        self.refuse: dict[str, Exception] = {}

    def _check(self, operation: str) -> None:
        if operation in self.refuse:
            raise self.refuse[operation]

    async def write(
        self,
        path: str,
        chunks: AsyncIterator[bytes],
        max_bytes: int,
        *,
        expected_bytes: int = 0,
        is_result: bool = False,
    ) -> int:
        self._check("write")
        data = b"".join([chunk async for chunk in chunks])
        if len(data) > max_bytes:
            raise PayloadTooLarge("too large")
        if path in self.sealed:
            raise Conflict("sealed")
        self.blobs[path] = data
        return len(data)

    async def read(self, path: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        self._check("read")
        if path not in self.blobs:
            raise NotFound("no such blob")
        data = self.blobs[path][start:end]
        for offset in range(0, len(data), CHUNK):
            yield data[offset : offset + CHUNK]

    async def size(self, path: str) -> int | None:
        self._check("size")
        return len(self.blobs[path]) if path in self.blobs else None

    async def seal(self, path: str) -> None:
        self._check("seal")
        if path not in self.blobs:
            raise NotFound("no such blob")
        self.sealed.add(path)

    async def link(self, path: str, to: str) -> None:
        self._check("link")
        if path not in self.blobs:
            raise NotFound("no such blob")
        self.blobs[to] = self.blobs[path]

    async def delete(self, path: str) -> None:
        self._check("delete")
        self.blobs.pop(path, None)
        self.sealed.discard(path)

    async def delete_all(self, paths: Sequence[str]) -> bool:
        self._check("delete_all")
        for blob in list(self.blobs):
            if any(blob == path or blob.startswith(f"{path}/") for path in paths):
                await self.delete(blob)
        return True

    async def collect(
        self, is_wanted: Callable[[str], Awaitable[bool]], older_than_seconds: float
    ) -> Collected:
        """All blobs count as old."""
        self._check("collect")
        unwanted = [blob for blob in list(self.blobs) if not await is_wanted(blob)]
        for blob in unwanted:
            await self.delete(blob)
        return Collected(files=len(unwanted))

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
        self._check("presign")
        return PresignedRequest(
            backend=HttpBackend(
                url=f"{base_url}/blobs/{path}?until={expires_at.timestamp()}&size={size}&by={by}",
                method=operation.upper(),
                headers={},
            ),
            expiration=expires_at,
            operation="put" if operation == "put" else "get",
            path=path,
        )


class UnsignedPlaces:
    """Signatures of places by a key that everybody knows."""

    def sign_place(self, *parts: str) -> str:
        return sha256(repr(parts).encode()).hexdigest()

    def has_signed_place(self, signature: str, *parts: str) -> bool:
        return signature == self.sign_place(*parts)


class Links(UnsignedPlaces):
    """Response URLs; for the commands in `broken` there are none to be had."""

    def __init__(self) -> None:
        self.broken: set[str] = set()

    def response_url(
        self,
        base_url: str,
        command_id: str,
        lease_id: str,
        expires_at: datetime,
        by: str | None = None,
    ) -> str:
        if command_id in self.broken:
            raise RuntimeError("no link for this one")
        until = int(expires_at.timestamp())
        return f"{base_url}/commands/{command_id}/response?expires={until}&lease={lease_id}"


class Gate:
    """Two doors around a call of a store method; `arrived` is set when a caller is at the first."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.enter = asyncio.Event()
        self.done = asyncio.Event()
        self.leave = asyncio.Event()

    def open(self) -> None:
        self.enter.set()
        self.leave.set()


class FlakyStore:
    """A real store, away or held up when a test wants it.

    `away`: methods that raise StoreUnavailable and do nothing. `fail_at`: the number of the call,
    from 1, that does so. `gates`: methods that wait. `calls`: what was called, in order.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self.away: set[str] = set()
        self.is_away = False
        self.fail_at: int | None = None
        self.raises: dict[str, BaseException] = {}
        self.gates: dict[str, Gate] = {}
        self.calls: list[str] = []
        self.answered: list[str] = []
        """What was called and has been done."""
        self.busy = 0
        """Calls that are on their way; those that are held up do not count."""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if self.is_away or name in self.away or len(self.calls) == self.fail_at:
                raise StoreUnavailable("the store is away")
            if name in self.raises:
                raise self.raises[name]
            gate = self.gates.get(name)
            if gate is not None:
                gate.arrived.set()
                await gate.enter.wait()
            self.busy += 1
            try:
                answer = await method(*args, **kwargs)
                self.answered.append(name)
            finally:
                self.busy -= 1
            if gate is not None:
                gate.done.set()
                await gate.leave.wait()
            return answer

        return call
