"""Params that say how large a result the handler is to make."""

from __future__ import annotations

from tests.support.octets import octets

RESULT_SEED = 7


def ask_for(result_bytes: int, length: int) -> bytes:
    """Params of that length: a line that says what to answer, then filling."""
    line = f"{result_bytes} {RESULT_SEED}\n".encode()
    return line + b"".join(octets(length - len(line), seed=1))
