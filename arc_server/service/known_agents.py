"""Known agents: what this process remembers of the agents of deployments in which a sender waits.

A deployment is read from the database once. From then on the registrations and the signs of life
that come in keep it current, so that telling a sender why it waits costs no query.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import msgspec

from arc_protocol.messages.agents import AgentStatus
from arc_protocol.messages.waiting import WaitingReason
from arc_server.ports.records import AgentPresence, Holder

MAX_DEPLOYMENTS: Final = 1_000
"""Deployments that are remembered; past it, the one that was read first is read again."""
MAX_AGENTS: Final = 200
"""Agents of one deployment that are read, those that were seen last."""
MAX_KEPT_AGENTS: Final = 1_000
"""Agents of one deployment that are remembered: each start is one more."""

EVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""Before the first sign of life of any agent."""


def has_ended(status: AgentStatus | None) -> bool:
    """Return True if an agent of this status said goodbye: its process ends."""
    return status is not None and status.state == WaitingReason.GONE


class KnownAgent(msgspec.Struct, kw_only=True):
    """An agent, as far as a sender that waits is concerned."""

    holder: Holder
    hostname: str | None = None
    """None until it has registered."""
    target_id: str | None = None
    status: AgentStatus | None = None
    last_seen_at: datetime = EVER
    replaced_at: datetime | None = None
    """When its next start registered."""

    @property
    def has_ended(self) -> bool:
        """Return True if its process said goodbye, or was started anew."""
        return has_ended(self.status) or is_replaced(self.last_seen_at, self.replaced_at)

    def take(self, found: AgentPresence) -> None:
        """Take in a registration."""
        registration = found.registration
        self.hostname = registration.hostname
        self.target_id = registration.target.resource_id if registration.target else None
        self.status = registration.status
        self.last_seen_at = max(self.last_seen_at, found.last_seen_at)

    def serves(self, target_id: str) -> bool:
        """Return True if the agent may take commands of a target."""
        return self.target_id is None or self.target_id == target_id


class Watch(NamedTuple):
    """The server's own view of silence: it means nothing while the server was not there to hear."""

    since: datetime
    """The server has heard nothing from before this instant."""
    silence: timedelta

    def silent_at(self, last_seen_at: datetime) -> datetime:
        """Return when an agent counts as silent that was last seen then."""
        return max(last_seen_at, self.since) + self.silence


def replacements(found: Iterable[AgentPresence]) -> dict[Holder, datetime]:
    """Return the agents that were started anew, and when their next start registered."""
    return {
        former: agent.first_seen_at
        for agent in found
        if (former := former_start(agent)) is not None
    }


def former_start(agent: AgentPresence) -> Holder | None:
    """Return the start that an agent replaces: one of its own credential."""
    replaces = agent.registration.replaces
    if replaces is None:
        return None
    return agent.registration.deployment_id, replaces, agent.credential


def is_replaced(last_seen_at: datetime, replaced_at: datetime | None) -> bool:
    """Return True if an agent was started anew and was not seen since.

    A clone of a machine claims to replace the original, which goes on and is seen.
    """
    return replaced_at is not None and last_seen_at <= replaced_at


class KnownAgents:
    """The agents of some deployments. For the event loop only."""

    def __init__(self, read: Callable[[str], Awaitable[Sequence[AgentPresence]]]) -> None:
        """Take agents from `read`, which returns those of a deployment, seen last first."""
        self._read = read
        self._known: dict[str, dict[Holder, KnownAgent]] = {}
        self._reading: dict[str, asyncio.Task[dict[Holder, KnownAgent]]] = {}

    async def of(self, deployment_id: str) -> Iterable[KnownAgent]:
        """Return the agents of a deployment. Raises StoreUnavailable."""
        reading = self._reading.get(deployment_id)
        if reading is None:
            known = self._known.get(deployment_id)
            if known is not None:
                return known.values()
            reading = asyncio.create_task(self._remember(deployment_id))
            self._reading[deployment_id] = reading
        return (await asyncio.shield(reading)).values()

    def mark_seen(self, holder: Holder, now: datetime) -> datetime | None:
        """Keep a sign of life. Return the one before; None if no sender has asked."""
        deployment_id, _, _ = holder
        agents = self._known.get(deployment_id)
        if agents is None:
            return None
        agent = self._agent(agents, holder)
        before, agent.last_seen_at = agent.last_seen_at, now
        return before

    def put(self, found: AgentPresence) -> bool:
        """Keep a registration. Return True if it changes what a sender is told."""
        deployment_id, agent_id, credential = found.holder
        agents = self._known.get(deployment_id)
        if agents is None:
            return False
        if credential is not None:  # the store drops this record, too
            agents.pop((deployment_id, agent_id, None), None)
        known = self._agent(agents, found.holder)
        before = msgspec.structs.replace(known, last_seen_at=EVER)
        known.take(found)
        former = former_start(found)
        replaced = None if former is None else agents.get(former)
        if replaced is not None:
            replaced.replaced_at = found.first_seen_at
        return before != msgspec.structs.replace(known, last_seen_at=EVER)

    def _agent(self, agents: dict[Holder, KnownAgent], holder: Holder) -> KnownAgent:
        """Return an agent, as one that has not registered if it is new."""
        agent = agents.get(holder)
        if agent is None:
            agent = agents[holder] = KnownAgent(holder=holder)
            deployment_id, _, _ = holder
            if len(agents) > MAX_KEPT_AGENTS and deployment_id not in self._reading:
                del self._known[deployment_id]  # read again when a sender asks, without the oldest
        return agent

    async def _remember(self, deployment_id: str) -> dict[Holder, KnownAgent]:
        """Read a deployment. What comes in meanwhile is newer, and stays."""
        if len(self._known) >= MAX_DEPLOYMENTS:
            del self._known[next(iter(self._known))]
        agents = self._known[deployment_id] = {}
        try:
            found = await self._read(deployment_id)
        except BaseException:
            self._known.pop(deployment_id, None)
            raise
        finally:
            del self._reading[deployment_id]
        replaced_at = replacements(found)
        for each in found:
            agent = agents.setdefault(each.holder, KnownAgent(holder=each.holder))
            if agent.hostname is None:
                agent.take(each)
            agent.replaced_at = replaced_at.get(each.holder, agent.replaced_at)
        return agents
