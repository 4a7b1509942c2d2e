"""Schemas of an agent's handlers, apart from the rest of its registration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from arc_protocol.messages.agents import AgentRegistration
from arc_protocol.messages.base import Message


class HandlerSchemas(Message, frozen=True, kw_only=True):
    """The schemas of one handler, apart from the rest of it."""

    params_schema: dict[str, Any] | None = None
    result_schema: dict[str, Any] | None = None


def split_schemas(
    registration: AgentRegistration,
) -> tuple[AgentRegistration, Mapping[str, HandlerSchemas]]:
    """Return a registration without its handlers' schemas, and the schemas by handler."""
    schemas = {
        handler.name: HandlerSchemas(
            params_schema=handler.params_schema, result_schema=handler.result_schema
        )
        for handler in registration.handlers
        if handler.params_schema is not None or handler.result_schema is not None
    }
    if not schemas:
        return registration, schemas
    bare = [
        msgspec.structs.replace(handler, params_schema=None, result_schema=None)
        for handler in registration.handlers
    ]
    return msgspec.structs.replace(registration, handlers=bare), schemas


def with_schemas(
    registration: AgentRegistration, schemas: Mapping[str, HandlerSchemas]
) -> AgentRegistration:
    """Return a registration with the schemas that `split_schemas` took out."""
    handlers = [
        msgspec.structs.replace(
            handler, params_schema=found.params_schema, result_schema=found.result_schema
        )
        if (found := schemas.get(handler.name)) is not None
        else handler
        for handler in registration.handlers
    ]
    return msgspec.structs.replace(registration, handlers=handlers)
