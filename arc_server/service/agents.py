"""Agents: who they are, what they can do, and when they were last heard of.

An agent is known by its deployment and its id together: a token that is bound to another deployment
can neither take its record over nor make it look alive.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog

from arc_protocol.codec import encode
from arc_protocol.errors import Forbidden
from arc_protocol.messages.agents import AgentInfo, AgentList, AgentRegistration, HeldLease
from arc_server.ports.agents import AgentStore
from arc_server.ports.clock import Clock
from arc_server.ports.handler_schemas import split_schemas
from arc_server.ports.records import Command, Holder
from arc_server.service.limits import CommandLimits
from arc_server.service.unnamed_pollers import Attendance

log = structlog.get_logger(__name__)


class AgentService:
    """The directory of agents. `within`: see CommandService."""

    def __init__(self, *, store: AgentStore, clock: Clock, limits: CommandLimits) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits
        self._seen: dict[Holder, datetime] = {}
        self._attendance = Attendance(clock.now())

    def polled(self, deployment_id: str, agent_id: str | None) -> None:
        """Somebody asks for work of a deployment: a registered agent or, without an id, another."""
        if agent_id is None:
            self._attendance.polled(deployment_id, self._clock.now())
        else:
            self.heard_of(deployment_id, agent_id)

    def heard_of(self, deployment_id: str, agent_id: str) -> None:
        """An agent has shown that it is there. Kept in memory until `flush`."""
        self._seen[deployment_id, agent_id] = self._clock.now()

    async def register(
        self, agent_id: str, registration: AgentRegistration, *, within: str | None = None
    ) -> None:
        """An agent says who it is and what it can do. Raises Forbidden.

        Schemas are a courtesy: when they are too large together, none of them is kept.
        """
        check_deployment(registration.deployment_id, within)
        bare, schemas = split_schemas(registration)
        if schemas and len(encode(schemas)) > self._limits.max_schemas_bytes:
            log.warning("agents.schemas_left_out", agent_id=agent_id)
            registration = bare
        await self._store.put_agent(agent_id, registration, self._clock.now())

    async def list(
        self,
        deployment_id: str | None,
        *,
        within: str | None = None,
        with_schemas: bool = False,
    ) -> AgentList:
        """Who is there, last seen when, holding what. Raises Forbidden."""
        if within is not None:
            check_deployment(deployment_id or within, within)
            deployment_id = within
        await self.flush()
        since = self._clock.now() - timedelta(seconds=self._limits.agents_seen_within_seconds)
        found = await self._store.list_agents(
            deployment_id, since, self._limits.max_agents_listed, with_schemas=with_schemas
        )
        presence = None
        if deployment_id is not None:
            known = await self._store.get_deployment(deployment_id)
            is_pushed = known is not None and known.push_url is not None
            presence = self._attendance.of(deployment_id, self._clock.now(), is_pushed=is_pushed)
        return AgentList(
            presence=presence,
            agents=[
                AgentInfo(
                    agent_id=agent.agent_id,
                    deployment_id=agent.registration.deployment_id,
                    target=agent.registration.target,
                    version=agent.registration.version,
                    hostname=agent.registration.hostname,
                    handlers=agent.registration.handlers,
                    status=agent.registration.status,
                    first_seen_at=agent.first_seen_at,
                    last_seen_at=agent.last_seen_at,
                    holding=[_held(command) for command in agent.holding],
                )
                for agent in found
            ],
        )

    async def flush(self) -> None:
        """Store when agents were last heard of."""
        seen, self._seen = self._seen, {}
        if not seen:
            return
        try:
            await self._store.touch_agents(seen)
        except BaseException:  # also the end of the sweeper
            self._seen = seen | self._seen
            raise


def check_deployment(named: str, within: str | None) -> None:
    """Raise Forbidden when a caller who is bound to a deployment names another."""
    if within is not None and named != within:
        raise Forbidden("this token is bound to another deployment", deployment_id=named)


def _held(command: Command) -> HeldLease:
    return HeldLease(
        command_id=command.command_id,
        command=command.command,
        attempt=command.attempt,
        lease_expires_at=command.lease_expires_at or command.created_at,
    )
