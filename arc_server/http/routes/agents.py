"""Routes of agents: register, list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aiohttp import web

from arc_protocol.codec import decode
from arc_protocol.errors import InvalidCommand
from arc_protocol.messages.agents import AgentRegistration
from arc_server.http import fields
from arc_server.http.answers import empty_answer, json_answer
from arc_server.http.calls import Call
from arc_server.http.routing import Route
from arc_server.service.agents import AgentService

MAX_VALUES: Final = 100_000
"""The most values in a registration, counted before it is decoded: a schema of 2 MiB that holds
nothing but empty lists would stop the event loop for half a second, one of so many for 60 ms."""


def routes(service: AgentService) -> Sequence[Route]:
    """Return the routes of a service."""

    async def register(call: Call) -> web.StreamResponse:
        agent_id = fields.name("agentId", call.arguments[0])
        body = await call.body(call.limits.max_registration_bytes)
        if sum(map(body.count, (b"[", b"{", b","))) > MAX_VALUES:
            raise InvalidCommand(f"handlers: more than {MAX_VALUES} values", field="handlers")
        registration = decode(body, AgentRegistration)
        await service.register(agent_id, registration, within=call.reach)
        return empty_answer()

    async def list_agents(call: Call) -> web.StreamResponse:
        deployment_id = fields.optional_name("deploymentId", call.query("deploymentId"))
        with_schemas = fields.boolean("schemas", call.query("schemas"))
        answer = await service.list(
            deployment_id,
            within=call.reach,
            with_schemas=with_schemas,
            with_old=fields.boolean("all", call.query("all")),
        )
        return json_answer(answer)

    return (
        Route(method="PUT", path="/agents/*", handler=register),
        Route(method="GET", path="/agents", handler=list_agents),
    )
