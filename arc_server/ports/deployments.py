"""The port for deployments and their targets."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from arc_protocol.messages.base import CommandTarget
from arc_server.ports.records import Deployment


class DeploymentStore(Protocol):
    """Deployments, as configured or as registered by a first request."""

    async def put_deployment(self, deployment: Deployment, now: datetime) -> None:
        """Register or replace a deployment as configured. Targets are added, never removed. A push
        URL that an operator has set stays where the deployment has none.

        Live commands follow: to the first target, from a target's old type to its new one, from
        being leased to being pushed and back. Raises CommandTargetIdInvalid, and
        CommandTargetNotFound when the default is none of the targets.
        """
        ...

    async def set_push(
        self,
        deployment_id: str,
        push_url: str | None,
        push_token: str | None,
        now: datetime,
        by: str | None = None,
    ) -> bool:
        """Push the commands of a deployment to a URL from now on, or to none; `by` sets it.

        The circuit is closed. A deployment is registered if it gets a URL. Return False if it is
        unknown and gets none.
        """
        ...

    async def seal_push_token(self, deployment_id: str, former: str, sealed: str) -> None:
        """Store the sealed form of a token, unless it was replaced meanwhile."""
        ...

    async def list_deployments(self) -> Sequence[Deployment]:
        """Return all deployments, by their names."""
        ...

    async def register(
        self, deployment_id: str, target: CommandTarget | None, now: datetime
    ) -> None:
        """Register a deployment, and a target of it, unless they are known."""
        ...

    async def remove_target(self, deployment_id: str, resource_id: str) -> bool:
        """Remove a target. Return False when there is none.

        Raises Conflict while commands wait for it or run there, and for the default target.
        """
        ...

    async def get_deployment(self, deployment_id: str) -> Deployment | None:
        """Return a deployment, None if it is unknown."""
        ...
