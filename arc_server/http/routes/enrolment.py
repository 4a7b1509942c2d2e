"""Routes of enrolment: they take an enrolment token or a signature in place of a bearer token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

from aiohttp import hdrs, web

from arc_protocol.codec import decode
from arc_protocol.enrolment import AccessTokenRequest, EnrolRequest, NewKeyRequest
from arc_protocol.errors import PayloadTooLarge, Unauthorized
from arc_server.auth.enrolment import Enrolment
from arc_server.http.answers import json_answer
from arc_server.http.calls import Call
from arc_server.http.rates import Rates
from arc_server.http.routing import Route
from arc_server.ports.clock import Clock

T = TypeVar("T")

MAX_BODY_BYTES: Final = 16 * 1024
"""The routes are open, so no more is read. The agent's requests are below 1 KiB."""


def routes(enrolment: Enrolment, clock: Clock, *, max_per_second: float) -> Sequence[Route]:
    """Return the routes of enrolment.

    `max_per_second` limits the enrolments by one token, and the access tokens and new keys of all
    agents together. An enrolment counts once its token was found, and before its body is read. An
    access token or a new key counts only once its signature is good. So strangers cannot use up
    what agents need: they count by address (Application).
    """
    enrolments = Rates(max_per_second, clock.monotonic, of="enrolment token")
    renewals = Rates(max_per_second, clock.monotonic, of="server")

    def count() -> None:
        renewals.take()

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
        return json_answer(await enrolment.access_token(request, count))

    async def new_key(call: Call) -> web.StreamResponse:
        request = await message(call, NewKeyRequest)
        return json_answer(await enrolment.new_key(request, count))

    return (
        Route(method="POST", path="/agents/enrol", handler=enrol),
        Route(method="POST", path="/agents/challenges", handler=challenge),
        Route(method="POST", path="/agents/tokens", handler=access_token),
        Route(method="POST", path="/agents/keys", handler=new_key),
    )
