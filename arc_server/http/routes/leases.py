"""Routes of holders: lease, renew, release, respond."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, cast

from aiohttp import hdrs, web

from arc_protocol.codec import decode
from arc_protocol.errors import InvalidCommand, LeaseNotFound
from arc_protocol.messages.bodies import CommandResponse
from arc_protocol.messages.leases import (
    LeaseRequest,
    LeaseResponse,
    ReleaseRequest,
    RenewRequest,
    RespondRequest,
)
from arc_server.http.answers import empty_answer, json_answer
from arc_server.http.calls import Call
from arc_server.http.routing import Route
from arc_server.http.signed_queries import is_signed
from arc_server.ports.clock import Clock
from arc_server.server_keys import RESPONSE, Signer
from arc_server.service.leases import LeaseService

DRAIN: Final = "drain"
"""The reason of a release that costs no attempt: the agent stops."""

_LEASE_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
_RESPONSE_KIND: Final = cast("type[CommandResponse]", CommandResponse)


def routes(service: LeaseService, signer: Signer, clock: Clock) -> Sequence[Route]:
    """Return the routes of a service; `signer` signs the URLs that responses are submitted by."""

    async def lease(call: Call) -> web.StreamResponse:
        request = await call.message(LeaseRequest, limit=call.limits.max_control_body_bytes)
        with call.waiting() as wait:
            answer = await service.lease(
                request,
                base_url=call.base_url,
                user_agent=call.http.headers.get(hdrs.USER_AGENT, ""),
                wait=wait,
                within=call.reach,
            )
        return await deliver(call, answer) if answer.leases else json_answer(answer)

    async def deliver(call: Call, granted: LeaseResponse) -> web.StreamResponse:
        """Send the answer at once, and release the leases that do not reach their holder."""
        lease_ids = [lease.lease_id for lease in granted.leases]
        if call.is_gone:
            await service.return_undelivered(lease_ids)
            raise ConnectionResetError("the client went before its leases were sent")
        is_delivered = False
        try:
            answer = call.finished(json_answer(granted))
            await answer.prepare(call.http)
            await answer.write_eof()  # waits for a slow reader, or until it hangs up
            is_delivered = not call.is_cut_off
        finally:
            if not is_delivered:
                await service.return_undelivered(lease_ids)
        return answer

    async def renew(call: Call) -> web.StreamResponse:
        request = await call.message(RenewRequest, limit=call.limits.max_control_body_bytes)
        return json_answer(await service.renew(request, within=call.reach))

    async def respond_to_all(call: Call) -> web.StreamResponse:
        request = await call.message(RespondRequest)
        return json_answer(await service.submit_responses(request, within=call.reach))

    async def release(call: Call) -> web.StreamResponse:
        reason = _reason(await call.body(call.limits.max_control_body_bytes))
        (lease_id,) = call.arguments
        await service.release(lease_id, costs_attempt=reason != DRAIN, within=call.reach)
        return empty_answer()

    async def respond(call: Call) -> web.StreamResponse:
        response = await call.message(_RESPONSE_KIND)
        (command_id,) = call.arguments
        lease_id = call.query("lease")
        if lease_id is not None and _LEASE_ID.fullmatch(lease_id) is None:
            raise LeaseNotFound("lease: no such lease", field="lease")
        await service.submit_response(command_id, response, lease_id=lease_id, within=call.reach)
        return empty_answer()

    def is_response_signed(call: Call) -> bool | None:
        (command_id,) = call.arguments
        parts = (command_id, call.query("lease") or "")
        return is_signed(call, signer, clock.now(), RESPONSE, *parts, field="response_token")

    path = "/commands/leases"
    return (
        Route(method="POST", path=path, handler=lease),
        Route(method="POST", path=f"{path}/renew", handler=renew),
        Route(method="POST", path=f"{path}/respond", handler=respond_to_all),
        Route(method="POST", path=f"{path}/*/release", handler=release),
        Route(
            method="PUT",
            path="/commands/*/response",
            handler=respond,
            signature=is_response_signed,
        ),
    )


def _reason(body: bytes) -> str | None:
    """Return the reason in the body of a release; None if there is none."""
    try:
        return decode(body, ReleaseRequest).reason
    except InvalidCommand:
        return None
