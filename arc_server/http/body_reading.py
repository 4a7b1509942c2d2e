"""Reading of request bodies: how fast they must arrive, and how much memory they take together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from arc_protocol.errors import BadRequest, PayloadTooLarge, RequestTimeout, Unavailable
from arc_server.http.limits import HttpLimits

CALLER_SHARE: Final = 2
"""One caller may take one part in so many of the memory, so that it cannot lock out the others."""


class BodyMemory:
    """The memory that request bodies take while they arrive, together and for each caller."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._taken = 0
        self._taken_by: dict[str | None, int] = {}

    def take(self, caller: str | None, size: int) -> None:
        """Count `size` bytes of a body. Raises Unavailable when they are too many."""
        by_caller = self._taken_by.get(caller, 0) + size
        if self._taken + size > self._max_bytes or by_caller > self._max_bytes // CALLER_SHARE:
            raise Unavailable("too many large bodies arrive at the same time; try again")
        self._taken += size
        self._taken_by[caller] = by_caller

    def give_back(self, caller: str | None, size: int) -> None:
        """Count bytes of a body no longer."""
        self._taken -= size
        left = self._taken_by[caller] - size
        if left:
            self._taken_by[caller] = left
        else:
            del self._taken_by[caller]


class Pace:
    """The pace measures how long the server has waited for a body, and how much arrived meanwhile.

    Each stretch of `body_seconds` must bring `body_bytes_per_second`: what arrived before earns no
    further time. Only the time that the server waits for the client counts.
    """

    def __init__(self, limits: HttpLimits, total_seconds: float | None) -> None:
        self._stretch_seconds = limits.body_seconds
        self._stretch_bytes = limits.body_seconds * limits.body_bytes_per_second
        self._waited = 0.0
        self._received = 0
        self._left_seconds = total_seconds

    def patience_seconds(self) -> float:
        """Return how long to wait for the next bytes."""
        patience = self._stretch_seconds - self._waited
        return patience if self._left_seconds is None else min(patience, self._left_seconds)

    def advance(self, waited_seconds: float, received_bytes: int) -> None:
        """Count a wait and what it brought. Raises RequestTimeout for a body that is too slow."""
        self._waited += waited_seconds
        self._received += received_bytes
        if self._left_seconds is not None:
            self._left_seconds -= waited_seconds
            if self._left_seconds <= 0:
                raise RequestTimeout("body: takes too long")
        if self._waited >= self._stretch_seconds:
            if self._received < self._stretch_bytes:
                raise RequestTimeout("body: arrives too slowly")
            self._waited, self._received = 0.0, 0


async def read_chunks(http: web.BaseRequest, limit: int, pace: Pace) -> AsyncIterator[bytes]:
    """Yield a body as it arrives, up to `limit` bytes.

    Raises PayloadTooLarge, RequestTimeout when it arrives too slowly, BadRequest when it is
    malformed, ConnectionError when it breaks off.
    """
    loop = asyncio.get_running_loop()
    content = http.content
    received = 0
    while not content.at_eof():
        begun = loop.time()
        chunk = b""
        try:
            async with asyncio.timeout(pace.patience_seconds()):
                chunk = await content.readany()
        except TimeoutError:
            pass  # the pace decides whether enough has arrived
        except (web.RequestPayloadError, HttpProcessingError):
            raise BadRequest("body: malformed framing") from None
        received += len(chunk)
        if received > limit:
            raise too_large(limit)
        if not content.at_eof():
            pace.advance(loop.time() - begun, len(chunk))
        if chunk:
            yield chunk


def too_large(limit: int) -> PayloadTooLarge:
    """Return the error for a body of more than `limit` bytes."""
    return PayloadTooLarge(f"body: more than {limit} bytes", limit=limit)
