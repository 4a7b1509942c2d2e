"""Agents: their registrations, and when each was last seen.

An agent is known by its deployment, its id and its credential together: another credential can
neither take its record over nor make it look alive.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec
import structlog

from arc_protocol.codec import encode
from arc_protocol.messages.agents import AgentInfo, AgentList, AgentRegistration, HeldCommand
from arc_protocol.messages.base import CommandTarget
from arc_server.ports.agents import AgentStore
from arc_server.ports.clock import Clock
from arc_server.ports.handler_schemas import split_schemas
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.ports.records import CommandRecord, Holder
from arc_server.service.bounds import check_agent, check_deployment
from arc_server.service.limits import CommandLimits
from arc_server.service.unnamed_pollers import UnnamedPollers

log = structlog.get_logger(__name__)


class AgentService:
    """The directory of agents. `within` is the reach of the caller."""

    def __init__(self, *, store: AgentStore, clock: Clock, limits: CommandLimits) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits
        self._seen: dict[Holder, datetime] = {}
        self._unnamed = UnnamedPollers(clock.now())

    def mark_polled(
        self,
        deployment_id: str,
        target: CommandTarget | None,
        agent_id: str | None,
        credential: str | None,
    ) -> None:
        """Remember a poll by an agent or, without an agent id, by an unnamed receiver."""
        if agent_id is None:
            self._unnamed.mark(deployment_id, target, self._clock.now())
        else:
            self.mark_seen((deployment_id, agent_id, credential))

    def mark_seen(self, holder: Holder) -> None:
        """Remember that an agent was there just now. Kept in memory until `flush`."""
        self._seen[holder] = self._clock.now()

    async def register(
        self, agent_id: str, registration: AgentRegistration, *, within: Reach = EVERYTHING
    ) -> None:
        """Store the registration of an agent. Raises Forbidden.

        Schemas of handlers are a courtesy: when they are too large together, none of them is kept.
        """
        check_deployment(registration.deployment_id, within)
        if within.target is not None and registration.target is None:
            registration = msgspec.structs.replace(registration, target=within.target)
        check_agent(registration.target, agent_id, within)
        bare, schemas = split_schemas(registration)
        if schemas and len(encode(schemas)) > self._limits.max_schemas_bytes:
            log.warning("agents.schemas_left_out", agent_id=agent_id)
            registration = bare
        await self._store.put_agent(agent_id, registration, self._clock.now(), within.credential)

    async def list(
        self,
        deployment_id: str | None,
        *,
        within: Reach = EVERYTHING,
        with_schemas: bool = False,
    ) -> AgentList:
        """Return the agents of a deployment, or of all, with what they hold. Raises Forbidden.

        Receivers that poll without registering are listed beside them.
        """
        if deployment_id is None:
            deployment_id = within.deployment()
        else:
            check_deployment(deployment_id, within)
        await self.flush()
        since = self._clock.now() - timedelta(seconds=self._limits.agents_seen_within_seconds)
        found = await self._store.list_agents(
            deployment_id, since, self._limits.max_agents_listed, with_schemas=with_schemas
        )
        presence = None
        if deployment_id is not None:
            known = await self._store.get_deployment(deployment_id)
            is_pushed = known is not None and known.push_url is not None
            presence = self._unnamed.of(deployment_id, self._clock.now(), is_pushed=is_pushed)
        receivers = self._unnamed.receivers(deployment_id, since)
        return AgentList(
            presence=presence,
            receivers=[each for each in receivers if within.allows_deployment(each.deployment_id)][
                : self._limits.max_agents_listed
            ]
            or None,
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
                    holding=[_held(command) for command in agent.holding if within.covers(command)],
                    credential=agent.credential,
                )
                for agent in found
                if within.allows_deployment(agent.registration.deployment_id)
            ],
        )

    async def flush(self) -> None:
        """Store when agents were last seen."""
        seen, self._seen = self._seen, {}
        if not seen:
            return
        try:
            await self._store.touch_agents(seen)
        except BaseException:  # also the end of the sweeper
            self._seen = seen | self._seen
            raise


def _held(command: CommandRecord) -> HeldCommand:
    return HeldCommand(
        command_id=command.command_id,
        command=command.command,
        attempt=command.attempt,
        lease_expires_at=command.lease_expires_at or command.created_at,
    )
