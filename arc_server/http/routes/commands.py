"""Routes of senders: create, upload, status, cancel, retry; and the payload route."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from aiohttp import web

from arc_protocol.codec import decode
from arc_protocol.errors import StoreUnavailable
from arc_protocol.messages.commands import (
    CreateCommandRequest,
    Payload,
    RetryRequest,
    UploadCompleteRequest,
)
from arc_server.http import fields
from arc_server.http.answers import empty_answer, json_answer
from arc_server.http.calls import Call
from arc_server.http.routing import Route
from arc_server.service.bounds import check_wait
from arc_server.service.commands import CommandService


def routes(service: CommandService) -> Sequence[Route]:
    """Return the routes of a service."""

    async def create(call: Call) -> web.StreamResponse:
        request = await call.message(CreateCommandRequest)
        wait_seconds = request.wait_seconds or 0
        check_wait(wait_seconds)
        answer = await service.create(request, base_url=call.base_url, within=call.reach)
        if not wait_seconds or answer.next == "upload":
            return json_answer(answer)
        try:
            with call.waiting() as wait:
                status = await service.status(
                    answer.command_id,
                    base_url=call.base_url,
                    wait_seconds=wait_seconds,
                    wait=wait,
                    within=call.reach,
                )
        except StoreUnavailable:  # it is created: after an error, the sender may create another
            return json_answer(answer)
        return json_answer(msgspec.structs.replace(answer, status=status))

    async def upload_complete(call: Call) -> web.StreamResponse:
        request = await call.message(
            UploadCompleteRequest, limit=call.limits.max_control_body_bytes
        )
        (command_id,) = call.arguments
        answer = await service.upload_complete(command_id, request.size, within=call.reach)
        return json_answer(answer)

    async def status(call: Call) -> web.StreamResponse:
        (command_id,) = call.arguments
        with call.waiting() as wait:
            answer = await service.status(
                command_id,
                base_url=call.base_url,
                wait_seconds=fields.wait_seconds(call.query("waitSeconds")),
                known_tag=fields.optional_name("waiting", call.query("waiting")),
                wait=wait,
                within=call.reach,
            )
        return json_answer(answer)

    async def cancel(call: Call) -> web.StreamResponse:
        (command_id,) = call.arguments
        return json_answer(await service.cancel(command_id, within=call.reach))

    async def retry(call: Call) -> web.StreamResponse:
        data = await call.body(call.limits.max_control_body_bytes)
        request = decode(data, RetryRequest) if data else RetryRequest()
        (command_id,) = call.arguments
        answer = await service.retry(command_id, request, base_url=call.base_url, within=call.reach)
        return json_answer(answer)

    async def read_payload(call: Call) -> web.StreamResponse:
        (command_id,) = call.arguments
        answer = await service.payload(command_id, base_url=call.base_url, within=call.reach)
        return json_answer(answer)

    async def write_payload(call: Call) -> web.StreamResponse:
        payload = await call.message(Payload)
        (command_id,) = call.arguments
        await service.write_payload(command_id, payload, within=call.reach)
        return empty_answer()

    one = "/commands/*"
    return (
        Route(method="POST", path="/commands", handler=create),
        Route(method="GET", path=one, handler=status, waits_its_turn=True),
        Route(method="POST", path=f"{one}/upload-complete", handler=upload_complete),
        Route(method="POST", path=f"{one}/cancel", handler=cancel),
        Route(method="POST", path=f"{one}/retry", handler=retry),
        Route(method="GET", path=f"{one}/payload", handler=read_payload),
        Route(method="PUT", path=f"{one}/payload", handler=write_payload),
    )
