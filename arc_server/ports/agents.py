"""The port for the directory of agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, Protocol

from arc_protocol.messages.agents import AgentRegistration
from arc_server.ports.deployments import DeploymentStore
from arc_server.ports.records import AgentCursor, AgentPage, AgentPresence, Holder, Quotas

PAGE_BYTES: Final = 4 << 20
"""The bytes of registrations after which a page of agents ends: each may take 2 MiB."""
SILENT_AGENT_SECONDS: Final = 3_600
"""An agent that was not seen for so long gives its place to another one."""


class AgentStore(DeploymentStore, Protocol):
    """Agents, by deployment, agent id and credential together."""

    async def put_agent(
        self,
        agent_id: str,
        registration: AgentRegistration,
        now: datetime,
        credential: str | None = None,
        quotas: Quotas | None = None,
    ) -> AgentPresence:
        """Store the registration that a credential sent; None: no token was needed.

        One agent id in two deployments, or by two credentials, is two agents. Where the deployment
        has as many as it may, a new one takes the place of the one that was seen longest ago, if
        that was more than `SILENT_AGENT_SECONDS` ago. Raises QuotaExceeded otherwise.
        """
        ...

    async def touch_agents(self, seen: Mapping[Holder, datetime]) -> None:
        """Record when agents were last seen. Unknown ones are ignored; time never moves back."""
        ...

    async def list_agents(
        self,
        deployment_id: str | None,
        seen_since: datetime,
        limit: int,
        *,
        with_schemas: bool = False,
        behind: AgentCursor | None = None,
    ) -> AgentPage:
        """Return the agents seen since then with the commands that they hold.

        They are in the order of deployment, agent id and credential: a sign of life between two
        pages moves no agent from one to the other. The page is the one behind a cursor; it ends at
        `limit` agents, or once their registrations take more than `PAGE_BYTES`. The schemas of
        their handlers are left out unless asked for.
        """
        ...

    async def latest_agents(self, deployment_id: str, limit: int) -> Sequence[AgentPresence]:
        """Return the agents of a deployment that were seen last, the latest first.

        The schemas of their handlers are left out.
        """
        ...
