"""Routes of enrolment: they take an enrolment token or a signature in place of a bearer token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from aiohttp import hdrs, web

from arc_protocol.codec import decode
from arc_protocol.enrolment import AccessTokenRequest, EnrolRequest, NewKeyRequest
from arc_protocol.errors import PayloadTooLarge, RateLimited
from arc_server.auth.enrolment import Enrolment
from arc_server.http.answers import json_answer
from arc_server.http.calls import Call
from arc_server.http.routing import Route, RouteAccess
from arc_server.ports.clock import Clock

T = TypeVar("T")

MAX_BODY_BYTES: Final = 16 * 1024
"""The routes are open, so no more is read. The agent's requests are below 1 KiB."""
BURST_SECONDS: Final = 2.0
"""A burst may use up the allowance of this many seconds."""


class Rate:
    """A limit on requests a second, on average, with short bursts."""

    def __init__(self, per_second: float, monotonic: Callable[[], float]) -> None:
        self._per_second = per_second
        self._monotonic = monotonic
        self._most = max(1.0, per_second * BURST_SECONDS)
        self._left = self._most
        self._at: float | None = None

    def take(self) -> None:
        """Count one request. Raises RateLimited past the limit."""
        now = self._monotonic()
        passed = 0.0 if self._at is None else max(0.0, now - self._at)
        self._at = now
        self._left = min(self._most, self._left + passed * self._per_second)
        if self._left < 1:
            raise RateLimited("too many enrolments and access tokens at a time; try again")
        self._left -= 1


def routes(enrolment: Enrolment, clock: Clock, max_per_second: float) -> Sequence[Route]:
    """Return the routes of enrolment.

    An enrolment counts against the limit before its body is read. An access token or a new key
    counts only once its signature is good, so that strangers cannot use up what agents need.
    """
    enrolments = Rate(max_per_second, clock.monotonic)
    renewals = Rate(max_per_second, clock.monotonic)

    async def message(call: Call, kind: type[T]) -> T:
        """Return the body as a message of `kind`."""
        body = bytearray()
        async for chunk in call.chunks(MAX_BODY_BYTES):
            body += chunk
        return decode(body, kind)

    async def enrol(call: Call) -> web.StreamResponse:
        enrolments.take()
        request = await message(call, EnrolRequest)
        authorization = call.http.headers.get(hdrs.AUTHORIZATION)
        return json_answer(await enrolment.enrol(authorization, request))

    async def challenge(call: Call) -> web.StreamResponse:
        if (call.http.content_length or 0) > MAX_BODY_BYTES:
            raise PayloadTooLarge(f"body: more than {MAX_BODY_BYTES} bytes", limit=MAX_BODY_BYTES)
        return json_answer(enrolment.challenge())

    async def access_token(call: Call) -> web.StreamResponse:
        request = await message(call, AccessTokenRequest)
        return json_answer(await enrolment.access_token(request, renewals.take))

    async def new_key(call: Call) -> web.StreamResponse:
        request = await message(call, NewKeyRequest)
        return json_answer(await enrolment.new_key(request, renewals.take))

    return (
        Route(method="POST", path="/agents/enrol", handler=enrol, access=RouteAccess.PUBLIC),
        Route(
            method="POST", path="/agents/challenges", handler=challenge, access=RouteAccess.PUBLIC
        ),
        Route(
            method="POST", path="/agents/tokens", handler=access_token, access=RouteAccess.PUBLIC
        ),
        Route(method="POST", path="/agents/keys", handler=new_key, access=RouteAccess.PUBLIC),
    )
