"""The directory of agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec

from arc_protocol.codec import encode
from arc_protocol.errors import QuotaExceeded
from arc_protocol.messages.agents import AgentRegistration
from arc_server.ports.agents import PAGE_BYTES, SILENT_AGENT_SECONDS
from arc_server.ports.handler_schemas import HandlerSchemas, split_schemas, with_schemas
from arc_server.ports.records import AgentCursor, AgentPage, AgentPresence, Holder, Quotas
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
    deployment_id: str
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
    behind: AgentCursor | None,
) -> AgentPage:
    """Fulfil AgentStore.list_agents."""
    where: dict[str, Any] = {
        "seen_since": micros(seen_since),
        "after_agent": "" if behind is None else behind.agent_id,
        "after_credential": "" if behind is None else behind.credential,
        "limit": limit + 1,
        "with_schemas": has_schemas,
    }
    if deployment_id is None:
        after = "" if behind is None else behind.deployment_id
        rows = db.each("list_agents", after_deployment=after, **where)
    else:
        rows = db.each("list_agents_of_deployment", deployment_id=deployment_id, **where)
    found: list[AgentPresence] = []
    page_bytes = 0
    last: _AgentRow | None = None
    for count, row in enumerate(map(_AgentRow._make, rows)):
        if last is not None and (count == limit or page_bytes > PAGE_BYTES):
            return AgentPage(agents=found, next=_cursor(last))
        last = row
        page_bytes += len(row.registration) + len(row.schemas or b"")
        with suppress(msgspec.ValidationError):  # names that an earlier release took
            found.append(_presence(db, row, has_schemas=has_schemas))
    return AgentPage(agents=found)


def latest_agents(db: StoreSession, deployment_id: str, limit: int) -> Sequence[AgentPresence]:
    """Fulfil AgentStore.latest_agents."""
    found: list[AgentPresence] = []
    for row in db.rows("latest_agents", deployment_id=deployment_id, limit=limit):
        with suppress(msgspec.ValidationError):  # as in `list_agents`
            found.append(_presence(db, _AgentRow._make(row), has_schemas=False))
    return found


def _cursor(row: _AgentRow) -> AgentCursor:
    return AgentCursor(
        deployment_id=row.deployment_id,
        agent_id=row.agent_id,
        credential=row.credential,
    )


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
