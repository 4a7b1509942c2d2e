"""Bytes of any length that are the same each time, made and judged without being held."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator, Iterator
from typing import Final

_CHUNK_BYTES: Final = 256 * 1024


def octets(length: int, seed: int) -> Iterator[bytes]:
    """`length` bytes that do not compress, in chunks."""
    source = random.Random(seed)
    for start in range(0, length, _CHUNK_BYTES):
        yield source.randbytes(min(_CHUNK_BYTES, length - start))


async def octets_in_time(length: int, seed: int) -> AsyncIterator[bytes]:
    """Yield the bytes as an async iterator."""
    for chunk in octets(length, seed):
        yield chunk


def digest_of(length: int, seed: int) -> str:
    """SHA-256 of these bytes."""
    digest = hashlib.sha256()
    for chunk in octets(length, seed):
        digest.update(chunk)
    return digest.hexdigest()
