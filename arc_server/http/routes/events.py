"""Routes of events: holders post them while they run a command, senders read them."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from arc_protocol.messages.events import MAX_EVENTS_BYTES, EventsRequest
from arc_server.http import fields
from arc_server.http.answers import empty_answer, json_answer
from arc_server.http.calls import Call
from arc_server.http.routing import Route
from arc_server.service.events import EventService


def routes(service: EventService) -> Sequence[Route]:
    """Return the routes of a service."""

    async def add(call: Call) -> web.StreamResponse:
        (command_id,) = call.arguments
        events = await call.message(EventsRequest, limit=MAX_EVENTS_BYTES)
        await service.add(command_id, events, within=call.reach)
        return empty_answer()

    async def read(call: Call) -> web.StreamResponse:
        (command_id,) = call.arguments
        with call.waiting() as wait:
            answer = await service.read(
                command_id,
                after=fields.integer("after", call.query("after")) or 0,
                limit=fields.integer("limit", call.query("limit")),
                wait_seconds=fields.wait_seconds(call.query("waitSeconds")),
                wait=wait,
                within=call.reach,
            )
        return json_answer(answer)

    path = "/commands/*/events"
    return (
        Route(method="POST", path=path, handler=add),
        Route(method="GET", path=path, handler=read),
    )
