"""Routes of enrolment: they take an enrolment token or a signature in place of a bearer token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec
from aiohttp import hdrs, web

from arc_protocol.codec import decode
from arc_protocol.enrolment import AccessTokenRequest, EnrolRequest, NewKeyRequest
from arc_protocol.errors import PayloadTooLarge, Unauthorized
from arc_server.auth.enrolment import Enrolment
from arc_server.http.answers import json_answer
from arc_server.http.calls import Call
from arc_server.http.rates import Rate, RateByKey
from arc_server.http.routing import Route
from arc_server.ports.clock import Clock

T = TypeVar("T")

MAX_BODY_BYTES: Final = 16 * 1024
"""The routes are open, so no more is read. The agent's requests are below 1 KiB."""


class EnrolmentRates(msgspec.Struct, frozen=True, kw_only=True):
    """Limits on requests a second."""

    max_per_second: float
    """Enrolments by one token, and access tokens and new keys of all agents together."""
    max_strangers_per_second: float
    """Tries from one address with no enrolment token of this server."""


def routes(enrolment: Enrolment, clock: Clock, rates: EnrolmentRates) -> Sequence[Route]:
    """Return the routes of enrolment.

    An enrolment counts once its token was found, and before its body is read. An access token or a
    new key counts only once its signature is good. So strangers cannot use up what agents need.
    """
    max_per_second = rates.max_per_second
    enrolments = RateByKey(max_per_second, clock.monotonic)
    strangers = RateByKey(rates.max_strangers_per_second, clock.monotonic)
    renewals = Rate(max_per_second, clock.monotonic)

    async def message(call: Call, kind: type[T]) -> T:
        """Return the body as a message of `kind`."""
        body = bytearray()
        async for chunk in call.chunks(MAX_BODY_BYTES):
            body += chunk
        return decode(body, kind)

    async def enrol(call: Call) -> web.StreamResponse:
        authorization = call.http.headers.get(hdrs.AUTHORIZATION)
        token = await enrolment.find(authorization)
        if token is None:
            strangers.take(call.client_address)
            raise Unauthorized("an enrolment token of this server is needed as the bearer token")
        enrolments.take(token.token_id)
        request = await message(call, EnrolRequest)
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
        Route(method="POST", path="/agents/enrol", handler=enrol),
        Route(method="POST", path="/agents/challenges", handler=challenge),
        Route(method="POST", path="/agents/tokens", handler=access_token),
        Route(method="POST", path="/agents/keys", handler=new_key),
    )
