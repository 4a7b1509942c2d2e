"""The digest of params: the audit log records it, and a signature is compared with it."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import Final

from arc_agent.handlers.context import ParamsSource

_CHUNK_BYTES: Final = 1024 * 1024


async def digest_of(source: ParamsSource) -> str:
    """Return the SHA-256 of the params as they came. Raises OSError."""
    if source.sha256 is not None:
        return source.sha256
    if source.file is None:
        return sha256(source.read()).hexdigest()
    return await asyncio.to_thread(_digest_of_file, source)


def _digest_of_file(source: ParamsSource) -> str:
    """Read the file once. Blocks. Raises OSError."""
    digest = sha256()
    with source.open() as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
