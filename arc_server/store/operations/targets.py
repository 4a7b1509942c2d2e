"""Whom a command is for: resolving and registering targets, by protocol.md 1.3, "Targets"."""

from __future__ import annotations

from typing import NamedTuple

from arc_protocol.errors import (
    ArcError,
    CommandTargetAmbiguous,
    CommandTargetIdInvalid,
    CommandTargetNotFound,
    DeploymentNotFound,
)
from arc_protocol.messages.base import IMPLICIT_TARGET, CommandTarget, ResourceType
from arc_server.store.engine.session import KnownDeployment, Session


class Resolved(NamedTuple):
    """Whom a command is for; `is_new`: to be registered first."""

    target: CommandTarget
    is_new: bool = False


def unregistered(deployment_id: str) -> KnownDeployment:
    """A deployment of which nothing is known yet."""
    return KnownDeployment(deployment_id, {}, None, None, None, None)


def resolve(
    deployment: KnownDeployment, named: str | None, *, auto_register: bool
) -> Resolved | ArcError:
    """Whom a create that names `named` is for, or why that cannot be said."""
    if named is None:
        target = deployment.default_target
        if target is None:
            return CommandTargetAmbiguous(
                "the deployment has several targets and no default: name one",
                deployment_id=deployment.deployment_id,
            )
        return Resolved(target)
    if ":" in named:
        return CommandTargetIdInvalid("targetResourceId: must not contain ':'", resource_id=named)
    if known := deployment.targets.get(named):
        return Resolved(known)
    if auto_register and named:
        return Resolved(
            CommandTarget(resource_id=named, resource_type=ResourceType.DAEMON), is_new=True
        )
    if named == IMPLICIT_TARGET.resource_id and not deployment.targets:
        return Resolved(IMPLICIT_TARGET)
    return CommandTargetNotFound(
        f"the deployment has no target {named!r}",
        deployment_id=deployment.deployment_id,
        resource_id=named,
    )


def known_or_new(db: Session, deployment_id: str, *, auto_register: bool) -> KnownDeployment:
    """The deployment. Raises DeploymentNotFound when it is unknown and may not be registered."""
    known = db.deployment(deployment_id)
    if known is not None:
        return known
    if not auto_register:
        raise DeploymentNotFound(
            f"no such deployment: {deployment_id}", deployment_id=deployment_id
        )
    return unregistered(deployment_id)


def register_deployment(db: Session, deployment_id: str, now: int) -> KnownDeployment:
    """Make sure that a deployment is registered."""
    known = db.deployment(deployment_id)
    if known is not None:
        return known
    db.change("insert_deployment", deployment_id=deployment_id, now=now)
    return db.deployment(deployment_id) or unregistered(deployment_id)


def register_target(db: Session, deployment_id: str, target: CommandTarget, now: int) -> bool:
    """Register a target (and its deployment). True when it took over waiting commands."""
    deployment = register_deployment(db, deployment_id, now)
    insert_target(db, deployment, target, now)
    return not deployment.targets and inherit(db, deployment_id, target)


def insert_target(
    db: Session, deployment: KnownDeployment, target: CommandTarget, now: int
) -> None:
    """Add a target behind the others."""
    db.change(
        "insert_target",
        deployment_id=deployment.deployment_id,
        position=len(deployment.targets),
        resource_id=target.resource_id,
        resource_type=target.resource_type.value,
        now=now,
    )
    db.forget_deployment(deployment.deployment_id)


def inherit(db: Session, deployment_id: str, target: CommandTarget) -> bool:
    """Make a deployment's first target the heir of the implicit one: it takes over the commands
    that wait, and the idempotency keys (`KnownDeployment.key_scope`). True when any waited."""
    db.change("name_heir", deployment_id=deployment_id, target_id=target.resource_id)
    db.forget_deployment(deployment_id)
    return move_waiting(db, deployment_id, IMPLICIT_TARGET.resource_id, target) > 0


def move_waiting(db: Session, deployment_id: str, from_id: str, target: CommandTarget) -> int:
    """Give the waiting commands of one target to another, or to its new type. How many."""
    db.forget_commands()
    return sum(
        db.change(
            query,
            deployment_id=deployment_id,
            from_id=from_id,
            to_id=target.resource_id,
            to_type=target.resource_type.value,
        )
        for query in ("move_ready", "move_pushes", "move_awaited")
    )
