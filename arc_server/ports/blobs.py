"""The port for bodies above the inline limit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Protocol

from arc_protocol.messages.bodies import PresignedRequest


class BlobStore(Protocol):
    """Blobs by relative path, such as `arc/commands/cmd_1/params`."""

    async def write(self, path: str, chunks: AsyncIterator[bytes], max_bytes: int) -> int:
        """Store a blob whole or not at all, durable before it returns. Return its size in bytes.

        Raises PayloadTooLarge past `max_bytes`, Conflict when the blob is sealed, and
        StorageOperationFailed.
        """
        ...

    def read(self, path: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield the bytes from `start` to before `end` in bounded chunks. Raises NotFound."""
        ...

    async def size(self, path: str) -> int | None:
        """Return its bytes, None when there is no such blob."""
        ...

    async def seal(self, path: str) -> None:
        """Let no later write replace the blob. Does nothing when it is sealed. Raises NotFound."""
        ...

    async def link(self, path: str, to: str) -> None:
        """Let a sealed blob be at a second path too, at the cost of no bytes.

        Each of the two may be removed by itself. Raises NotFound, StorageOperationFailed.
        """
        ...

    async def delete(self, path: str) -> None:
        """Remove a blob if it is there."""
        ...

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
        """Return a request that may `get` or `put` one blob until `expires_at`, by absolute URL.

        `base_url` ends in /v1. No more than `size` bytes may be put. The URL ends when `by`, the
        token or credential that it is made for, is revoked.
        """
        ...
