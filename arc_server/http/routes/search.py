"""Routes of those who look for commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from aiohttp import web

from arc_protocol.errors import InvalidCommand
from arc_protocol.lifecycle import ShownState
from arc_protocol.messages.base import State
from arc_server.http import fields
from arc_server.http.answers import json_answer
from arc_server.http.calls import Call
from arc_server.http.routing import Route
from arc_server.ports.records import CommandFilter
from arc_server.service.attempts import AttemptService
from arc_server.service.searching import SearchService

FILTER: Final = (
    *("deploymentId", "state", "states", "command", "target", "createdBy", "idempotencyKey"),
    *("createdAfter", "createdBefore", "endedAfter", "endedBefore"),
)

PAGING: Final = ("limit", "cursor")
TAG: Final = "tag."
"""The tag `team` is asked for as `tag.team`."""


def routes(service: SearchService, attempts: AttemptService) -> Sequence[Route]:
    """Return the routes of both services."""

    async def list_commands(call: Call) -> web.StreamResponse:
        call.check_query(*FILTER, *PAGING, family=TAG)
        answer = await service.list(
            _filter_of(call),
            cursor=call.query("cursor"),
            limit=fields.integer("limit", call.query("limit")),
            within=call.reach,
        )
        named = [name for name in call.query_names if name not in PAGING]
        return json_answer(msgspec.structs.replace(answer, filtered_by=named or None))

    async def count(call: Call) -> web.StreamResponse:
        call.check_query("deploymentId")
        deployment_id = fields.optional_name("deploymentId", call.query("deploymentId"))
        return json_answer(await service.count(deployment_id, within=call.reach))

    async def list_attempts(call: Call) -> web.StreamResponse:
        call.check_query()
        (command_id,) = call.arguments
        return json_answer(await attempts.list(command_id, within=call.reach))

    return (
        Route(method="GET", path="/commands", handler=list_commands),
        Route(method="GET", path="/commands/counts", handler=count),
        Route(method="GET", path="/commands/*/attempts", handler=list_attempts),
    )


def _filter_of(call: Call) -> CommandFilter:
    """Return the filter of a query. Raises InvalidCommand."""
    state, states = call.query("state"), call.query("states")
    if state is not None and states is not None:
        raise InvalidCommand("states: give state or states, not both", field="states")
    return CommandFilter(
        deployment_id=fields.optional_name("deploymentId", call.query("deploymentId")),
        state=fields.choice("state", state, State),
        states=fields.choices("states", states, ShownState),
        command=fields.optional_name("command", call.query("command")),
        target_id=fields.optional_name("target", call.query("target")),
        created_by=fields.optional_name("createdBy", call.query("createdBy")),
        idempotency_key=fields.optional_key("idempotencyKey", call.query("idempotencyKey")),
        tags=fields.tags(TAG, call.query_family(TAG)),
        created_after=fields.instant("createdAfter", call.query("createdAfter")),
        created_before=fields.instant("createdBefore", call.query("createdBefore")),
        ended_after=fields.instant("endedAfter", call.query("endedAfter")),
        ended_before=fields.instant("endedBefore", call.query("endedBefore")),
    )
