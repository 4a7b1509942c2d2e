"""Resolving and registering the targets of commands, by docs/protocol.md, Targets."""

from __future__ import annotations

from typing import NamedTuple

from arc_protocol.errors import (
    ArcError,
    CommandTargetAmbiguous,
    CommandTargetIdInvalid,
    CommandTargetNotFound,
    Conflict,
    DeploymentNotFound,
)
from arc_protocol.messages.base import (
    IMPLICIT_TARGET,
    RESERVED_TARGETS,
    CommandTarget,
    ResourceType,
)
from arc_server.store.engine.deployments import KnownDeployment, is_ordinary
from arc_server.store.engine.session import StoreSession
from arc_server.store.operations import transitions


class Resolved(NamedTuple):
    """The target of a command. If `is_new`, it is to be registered first."""

    target: CommandTarget
    is_new: bool = False


def resolve(
    deployment: KnownDeployment, named: str | None, *, auto_register: bool
) -> Resolved | ArcError:
    """Return the target of a create that names `named`, or the error that it gets."""
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
    # A misspelled name beside the right one would make later creates without a target ambiguous.
    is_registrable = named in RESERVED_TARGETS or not deployment.has_targets
    if auto_register and named and is_registrable:
        return Resolved(
            CommandTarget(resource_id=named, resource_type=ResourceType.DAEMON), is_new=True
        )
    if named == IMPLICIT_TARGET.resource_id and not deployment.has_targets:
        return Resolved(IMPLICIT_TARGET)
    return CommandTargetNotFound(
        f"the deployment has no target {named!r}",
        deployment_id=deployment.deployment_id,
        resource_id=named,
    )


def known_or_new(db: StoreSession, deployment_id: str, *, auto_register: bool) -> KnownDeployment:
    """Return a deployment, an empty one if it is unknown and may be registered.

    Raises DeploymentNotFound when it may not.
    """
    known = db.deployment(deployment_id)
    if known is not None:
        return known
    if not auto_register:
        raise DeploymentNotFound(
            f"no such deployment: {deployment_id}", deployment_id=deployment_id
        )
    return KnownDeployment(deployment_id, {})


def register_deployment(db: StoreSession, deployment_id: str, now: int) -> KnownDeployment:
    """Register a deployment unless it is known."""
    known = db.deployment(deployment_id)
    if known is not None:
        return known
    db.change("insert_deployment", deployment_id=deployment_id, now=now)
    return KnownDeployment(deployment_id, {})


def register_target(db: StoreSession, deployment_id: str, target: CommandTarget, now: int) -> bool:
    """Register a target and its deployment. Return True when it took over waiting commands."""
    deployment = register_deployment(db, deployment_id, now)
    insert_target(db, deployment, target, now)
    is_first = is_ordinary(target) and not deployment.has_targets
    return is_first and inherit(db, deployment_id, target)


def register(db: StoreSession, deployment_id: str, target: CommandTarget | None, now: int) -> None:
    """Fulfil DeploymentStore.register, also for what a token or an enrolment names."""
    deployment = register_deployment(db, deployment_id, now)
    if target is not None and target.resource_id not in deployment.targets:
        register_target(db, deployment_id, target, now)


def remove_target(db: StoreSession, deployment_id: str, resource_id: str) -> bool:
    """Fulfil DeploymentStore.remove_target."""
    deployment = db.deployment(deployment_id)
    if deployment is None or resource_id not in deployment.targets:
        return False
    if resource_id == deployment.default_target_id:
        raise Conflict("the target is the default of its deployment, by the configuration")
    named = {"deployment_id": deployment_id, "resource_id": resource_id}
    live = db.row("live_command_of_target", **named)
    if live is not None:
        raise Conflict("commands wait for the target, or run there", command_id=live[0])
    db.change("remove_target", **named)
    db.change("forget_heir", **named)
    db.forget_deployment(deployment_id)
    return True


def insert_target(
    db: StoreSession, deployment: KnownDeployment, target: CommandTarget, now: int
) -> None:
    """Add a target behind the others."""
    db.change(
        "insert_target",
        deployment_id=deployment.deployment_id,
        resource_id=target.resource_id,
        resource_type=target.resource_type.value,
        now=now,
    )
    db.forget_deployment(deployment.deployment_id)


def inherit(db: StoreSession, deployment_id: str, target: CommandTarget) -> bool:
    """Make a deployment's first target the heir of the implicit one.

    It takes over the commands that wait, and the idempotency keys (`KnownDeployment.key_scope`).
    Return True when any command waited.
    """
    db.change("name_heir", deployment_id=deployment_id, target_id=target.resource_id)
    db.forget_deployment(deployment_id)
    return transitions.move_waiting(db, deployment_id, IMPLICIT_TARGET.resource_id, target) > 0
