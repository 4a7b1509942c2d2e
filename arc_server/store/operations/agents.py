"""The directory of agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import msgspec

from arc_protocol.codec import encode
from arc_protocol.errors import QuotaExceeded
from arc_protocol.messages.agents import AgentRegistration
from arc_server.ports.agents import SILENT_AGENT_SECONDS
from arc_server.ports.handler_schemas import HandlerSchemas, split_schemas, with_schemas
from arc_server.ports.records import AgentPresence, Holder, Quotas
from arc_server.store.engine.rows import command_of, micros, moment
from arc_server.store.engine.session import StoreSession
from arc_server.store.operations import quotas

NO_CREDENTIAL: Final = ""
"""Stands in the row of an agent that registered without a token: NULL is no part of a key."""
_REGISTRATION: Final = msgspec.json.Decoder(AgentRegistration)
_SCHEMAS: Final = msgspec.json.Decoder(dict[str, HandlerSchemas])


class _AgentRow(NamedTuple):
    """A row of the queries about agents."""

    agent_id: str
    credential: str
    registration: bytes
    first_seen_at: int
    last_seen_at: int
    schemas: bytes | None


def put_agent(
    db: StoreSession,
    agent_id: str,
    registration: AgentRegistration,
    now: datetime,
    credential: str | None,
    most: Quotas | None,
) -> AgentPresence:
    """Fulfil AgentStore.put_agent."""
    bare, schemas = split_schemas(registration)
    named = {
        "deployment_id": registration.deployment_id,
        "agent_id": agent_id,
        "credential": credential or NO_CREDENTIAL,
    }
    if most is not None and not db.rows("find_agent", **named):
        _make_room(db, registration.deployment_id, most, now)
    if credential is not None:
        db.change("drop_unowned_agent", **named)
    db.change(
        "put_agent",
        **named,
        registration=encode(bare),
        schemas=msgspec.json.encode(schemas) if schemas else None,
        now=micros(now),
    )
    db.usage.reread(registration.deployment_id)
    [row] = db.rows("find_agent", **named)
    return _presence(db, _AgentRow(*row), has_schemas=True)


def _make_room(db: StoreSession, deployment_id: str, most: Quotas, now: datetime) -> None:
    """Let another agent register; a silent one gives its place. Raises QuotaExceeded."""
    try:
        quotas.check_agent(db, deployment_id, most)
    except QuotaExceeded:
        before = micros(now - timedelta(seconds=SILENT_AGENT_SECONDS))
        if not db.rows("silent_agent", deployment_id=deployment_id, before=before):
            raise
        db.change("drop_silent_agent", deployment_id=deployment_id, before=before)


def touch_agents(db: StoreSession, seen: Mapping[Holder, datetime]) -> None:
    """Fulfil AgentStore.touch_agents."""
    for (deployment_id, agent_id, credential), at in seen.items():
        db.change(
            "touch_agent",
            deployment_id=deployment_id,
            agent_id=agent_id,
            credential=credential or NO_CREDENTIAL,
            now=micros(at),
        )


def list_agents(
    db: StoreSession,
    deployment_id: str | None,
    seen_since: datetime,
    limit: int,
    has_schemas: bool,
) -> Sequence[AgentPresence]:
    """Fulfil AgentStore.list_agents."""
    since = micros(seen_since)
    rows = (
        db.rows("list_agents", seen_since=since, limit=limit, with_schemas=has_schemas)
        if deployment_id is None
        else db.rows(
            "list_agents_of_deployment",
            deployment_id=deployment_id,
            seen_since=since,
            limit=limit,
            with_schemas=has_schemas,
        )
    )
    found: list[AgentPresence] = []
    for each in rows:
        with suppress(msgspec.ValidationError):  # names that an earlier release took
            found.append(_presence(db, _AgentRow(*each), has_schemas=has_schemas))
    return found


def _presence(db: StoreSession, row: _AgentRow, *, has_schemas: bool) -> AgentPresence:
    registration = _REGISTRATION.decode(row.registration)
    if not has_schemas:
        # A row from before migration 2 has the schemas in its registration.
        registration, _ = split_schemas(registration)
    elif row.schemas is not None:
        registration = with_schemas(registration, _SCHEMAS.decode(row.schemas))
    credential = row.credential or None
    held = db.rows(
        "held_by",
        holder=row.agent_id,
        deployment_id=registration.deployment_id,
        credential=credential,
    )
    return AgentPresence(
        agent_id=row.agent_id,
        registration=registration,
        first_seen_at=moment(row.first_seen_at),
        last_seen_at=moment(row.last_seen_at),
        holding=list(map(command_of, held)),
        credential=credential,
    )
