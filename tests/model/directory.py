"""Deployments, targets and agents in the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from arc_protocol.errors import (
    CommandTargetIdInvalid,
    CommandTargetNotFound,
    Conflict,
    QuotaExceeded,
)
from arc_protocol.messages.agents import AgentRegistration
from arc_protocol.messages.base import RESERVED_TARGETS, CommandTarget, State
from arc_server.ports.agents import PAGE_BYTES, SILENT_AGENT_SECONDS
from arc_server.ports.handler_schemas import split_schemas
from arc_server.ports.records import (
    AgentCursor,
    AgentPage,
    AgentPresence,
    Deployment,
    Holder,
    Quotas,
)
from tests.model.pushes import ModelPushes
from tests.model.records import Place, is_good_id, ordinary_targets, place_in_list, size_of_agent


class ModelDirectory(ModelPushes):
    """Registers, lists and removes deployments, targets and agents."""

    async def put_deployment(self, deployment: Deployment, now: datetime) -> None:
        """See Store."""
        self._check_open()
        deployment_id, default = deployment.deployment_id, deployment.default_target_id
        known = self._places.get(deployment_id, Place())
        for target in deployment.targets:
            if not is_good_id(target.resource_id):
                raise CommandTargetIdInvalid("target id: must not be empty or contain ':'")
        if default in RESERVED_TARGETS:
            raise CommandTargetIdInvalid(f"the default target must not be {default!r}")
        named = {target.resource_id for target in deployment.targets} | known.targets.keys()
        if default is not None and default not in named:
            raise CommandTargetNotFound(f"the default target {default!r} is not registered")
        place = self._places.setdefault(deployment_id, known)
        is_first = not ordinary_targets(place)
        for target in deployment.targets:
            is_new = target.resource_id not in place.targets
            place.targets[target.resource_id] = target
            if not is_new:
                self._move(deployment_id, target.resource_id, target)
        if is_first and (ordinary := ordinary_targets(place)):
            self._inherit(deployment_id, place.targets[default or ordinary[0].resource_id])
        place.default = default
        if deployment.push_url is not None or place.push_by is None:
            self._set_push(deployment_id, deployment.push_url, deployment.push_token, now, None)

    async def get_deployment(self, deployment_id: str) -> Deployment | None:
        """See Store."""
        self._check_open()
        place = self._places.get(deployment_id)
        if place is None:
            return None
        return Deployment(
            deployment_id=deployment_id,
            targets=tuple(place.targets.values()),
            default_target_id=place.default,
            push_url=place.push_url,
            push_token=place.push_token,
            push_by=place.push_by,
            circuit=place.circuit,
        )

    async def list_deployments(self) -> Sequence[Deployment]:
        """See Store."""
        found = [await self.get_deployment(name) for name in sorted(self._places)]
        return [each for each in found if each is not None]

    async def remove_deployment(self, deployment_id: str, now: datetime) -> bool:
        """See Store."""
        if deployment_id not in self._places:
            return False
        if self._live(lambda command: command.deployment_id == deployment_id):
            raise Conflict("a command waits or runs: cancel it first")
        self._check_no_credentials(deployment_id, now)
        self._agents = {
            holder: agent for holder, agent in self._agents.items() if holder[0] != deployment_id
        }
        del self._places[deployment_id]
        return True

    async def register(
        self, deployment_id: str, target: CommandTarget | None, now: datetime
    ) -> None:
        """See Store."""
        self._check_open()
        self._named_by_operator(deployment_id, target)

    def _named_by_operator(self, deployment_id: str, target: CommandTarget | None) -> None:
        place = self._places.setdefault(deployment_id, Place())
        if target is not None and target.resource_id not in place.targets:
            self._register(deployment_id, target)

    async def remove_target(self, deployment_id: str, resource_id: str) -> bool:
        """See Store."""
        self._check_open()
        place = self._places.get(deployment_id)
        if place is None or resource_id not in place.targets:
            return False
        if resource_id == place.default:
            raise Conflict("the target is the default of its deployment")
        if self._live(
            lambda command: (
                command.deployment_id == deployment_id and command.target.resource_id == resource_id
            )
        ):
            raise Conflict("commands wait for the target, or run there")
        del place.targets[resource_id]
        if place.heir == resource_id:
            place.heir = None
        return True

    async def put_agent(
        self,
        agent_id: str,
        registration: AgentRegistration,
        now: datetime,
        credential: str | None = None,
        quotas: Quotas | None = None,
    ) -> AgentPresence:
        """See Store."""
        self._check_open()
        holder = (registration.deployment_id, agent_id, credential)
        known = self._agents.get(holder)
        if known is None and quotas is not None:
            self._make_room(registration.deployment_id, quotas, now)
        if credential is not None:
            self._agents.pop((registration.deployment_id, agent_id, None), None)
        self._agents[holder] = AgentPresence(
            agent_id=agent_id,
            registration=registration,
            first_seen_at=known.first_seen_at if known else now,
            last_seen_at=max(now, known.last_seen_at) if known else now,
            credential=credential,
        )
        return self._presence(self._agents[holder])

    def _make_room(self, deployment_id: str, quotas: Quotas, now: datetime) -> None:
        used = self.usage(deployment_id)
        if used["agents"] < quotas.max_agents and used["stored_bytes"] < quotas.max_stored_bytes:
            return
        oldest = min(
            (holder for holder in self._agents if holder[0] == deployment_id),
            key=lambda holder: self._agents[holder].last_seen_at,
            default=None,
        )
        silent = timedelta(seconds=SILENT_AGENT_SECONDS)
        if oldest is None or self._agents[oldest].last_seen_at >= now - silent:
            raise QuotaExceeded("the deployment has used up a quota")
        del self._agents[oldest]

    async def touch_agents(self, seen: Mapping[Holder, datetime]) -> None:
        """See Store."""
        self._check_open()
        for holder, at in seen.items():
            agent = self._agents.get(holder)
            if agent is not None and at > agent.last_seen_at:
                self._agents[holder] = msgspec.structs.replace(agent, last_seen_at=at)

    async def list_agents(
        self,
        deployment_id: str | None,
        seen_since: datetime,
        limit: int,
        *,
        with_schemas: bool = False,
        behind: AgentCursor | None = None,
    ) -> AgentPage:
        """See Store."""
        self._check_open()
        found = [
            agent
            for agent in self._agents.values()
            if agent.last_seen_at >= seen_since
            and deployment_id in (None, agent.registration.deployment_id)
        ]
        found.sort(key=place_in_list)
        if behind is not None:
            place = msgspec.structs.astuple(behind)
            found = [agent for agent in found if place_in_list(agent) > place]
        page: list[AgentPresence] = []
        page_bytes = 0
        for agent in found:
            if len(page) == limit or page_bytes > PAGE_BYTES:
                last = AgentCursor(*place_in_list(page[-1])) if page else behind
                return AgentPage(agents=page, next=last)
            if not with_schemas:
                bare, _ = split_schemas(agent.registration)
                agent = msgspec.structs.replace(agent, registration=bare)
            page_bytes += size_of_agent(agent)
            page.append(self._presence(agent))
        return AgentPage(agents=page)

    async def latest_agents(self, deployment_id: str, limit: int) -> Sequence[AgentPresence]:
        """See Store."""
        page = await self.list_agents(
            deployment_id, datetime.min.replace(tzinfo=UTC), len(self._agents)
        )
        latest = sorted(
            page.agents,
            key=lambda agent: (agent.last_seen_at, place_in_list(agent)),
            reverse=True,
        )
        return latest[:limit]

    def _presence(self, agent: AgentPresence) -> AgentPresence:
        held = self._live(
            lambda command: (
                command.state is State.DISPATCHED
                and command.lease_holder == agent.agent_id
                and command.deployment_id == agent.registration.deployment_id
                and command.lease_credential == agent.credential
            )
        )
        return msgspec.structs.replace(agent, holding=[stored.command for stored in held])

    async def remove_agent(self, deployment_id: str, agent_id: str) -> bool:
        """See Store."""
        if self._live(
            lambda command: (
                command.state is State.DISPATCHED
                and command.deployment_id == deployment_id
                and command.lease_holder == agent_id
            )
        ):
            raise Conflict("the agent holds a command")
        known = [holder for holder in self._agents if holder[:2] == (deployment_id, agent_id)]
        for holder in known:
            del self._agents[holder]
        return bool(known)
