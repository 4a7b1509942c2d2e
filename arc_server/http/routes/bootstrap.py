"""The route of bootstrap: public clients in hosted mode get a token of an hour for one purpose."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from aiohttp import web

from arc_protocol.errors import (
    CommandTargetIdInvalid,
    CommandTargetNotFound,
    DeploymentNotFound,
    Forbidden,
    InvalidCommand,
)
from arc_protocol.messages.base import RESERVED_TARGETS, CommandTarget, ResourceType
from arc_protocol.messages.bootstrap import BootstrapRequest, BootstrapResponse
from arc_server.auth.bootstrap import LIFE_SECONDS, BootstrapGrant, BootstrapTokens
from arc_server.auth.callers import UNCHECKED, Caller
from arc_server.auth.tokens import Scope
from arc_server.http.answers import json_answer
from arc_server.http.base_urls import PREFIX
from arc_server.http.calls import Call
from arc_server.http.routing import Route
from arc_server.ports.clock import Clock
from arc_server.ports.deployments import DeploymentStore
from arc_server.service.bounds import check_agent, check_deployment

MAX_BODY_BYTES: Final = 16 * 1024
"""Names of 256 characters, and nothing else."""


def routes(
    store: DeploymentStore, tokens: BootstrapTokens, clock: Clock, *, auto_register: bool | None
) -> Sequence[Route]:
    """Return the route of bootstrap. `auto_register`: unknown deployments and targets will do;
    None: for callers that may register them."""

    async def bootstrap(call: Call) -> web.StreamResponse:
        request = await call.message(BootstrapRequest, limit=MAX_BODY_BYTES)
        caller = call.caller or UNCHECKED
        if caller.is_bootstrapped:
            raise Forbidden("a bootstrap token is good for no other one")
        if caller.reach.credential is not None and caller.authority is None:
            raise Forbidden("a token of OpenID Connect is good for no bootstrap token")
        scope = Scope.SENDER if request.role == "sender" else Scope.AGENT
        if caller.scope not in (Scope.ADMIN, scope):
            raise Forbidden(f"a token of scope {caller.scope} is not for the role {request.role}")
        check_deployment(request.deployment_id, caller.reach)
        target = await _target(request, caller)
        if scope is Scope.AGENT:
            check_agent(target, caller.reach.agent_id, caller.reach)
        expires = int(clock.now().timestamp()) + LIFE_SECONDS
        grant = BootstrapGrant(
            scope=scope,
            deployment_id=request.deployment_id,
            target=target,
            authority=caller.authority,
        )
        return json_answer(
            BootstrapResponse(
                # Public clients add the prefix.
                manager_url=call.base_url.removesuffix(f"/{PREFIX}"),
                token=tokens.mint(grant, expires),
                expires_at=datetime.fromtimestamp(expires, UTC),
                target=target,
            )
        )

    async def _target(request: BootstrapRequest, caller: Caller) -> CommandTarget | None:
        """Return the target of a receiver; None for a sender."""
        named = request.target
        if (named is None) is (request.role == "receiver"):
            problem = "is needed for a receiver" if named is None else "is for receivers only"
            raise InvalidCommand(f"target: {problem}", field="target")
        if named is None:
            return None
        if named in RESERVED_TARGETS:
            raise Forbidden(f"the target {named} is reserved", resource_id=named)
        if not named or ":" in named:
            raise CommandTargetIdInvalid("target: no target has such an id", resource_id=named)
        deployment_id = request.deployment_id
        registers = caller.reach.may_register if auto_register is None else auto_register
        deployment = await store.get_deployment(deployment_id)
        if deployment is None and not registers:
            raise DeploymentNotFound(
                f"no such deployment: {deployment_id}", deployment_id=deployment_id
            )
        for target in () if deployment is None else deployment.targets:
            if target.resource_id == named:
                return target
        if not registers:
            raise CommandTargetNotFound(
                f"the deployment has no target {named!r}",
                deployment_id=deployment_id,
                resource_id=named,
            )
        target = CommandTarget(resource_id=named, resource_type=ResourceType.DAEMON)
        await store.register(deployment_id, target, clock.now())
        return target

    return (Route(method="POST", path="/commands/bootstrap", handler=bootstrap),)
