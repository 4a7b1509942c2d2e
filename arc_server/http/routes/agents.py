"""Routes of agents: register, list."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from arc_protocol.messages.agents import AgentRegistration
from arc_server.http import fields
from arc_server.http.answers import empty_answer, json_answer
from arc_server.http.calls import Call
from arc_server.http.routing import Route
from arc_server.service.agents import AgentService


def routes(service: AgentService) -> Sequence[Route]:
    """Return the routes of a service."""

    async def register(call: Call) -> web.StreamResponse:
        agent_id = fields.name("agentId", call.arguments[0])
        registration = await call.message(
            AgentRegistration, limit=call.limits.max_registration_bytes
        )
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
