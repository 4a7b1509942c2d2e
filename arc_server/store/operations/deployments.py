"""Deployments as configured, and what follows for their live commands."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from arc_protocol.errors import CommandTargetIdInvalid, CommandTargetNotFound
from arc_protocol.messages.base import RESERVED_TARGETS, CommandTarget
from arc_server.ports.records import Deployment
from arc_server.store.engine.deployments import KnownDeployment, is_ordinary
from arc_server.store.engine.rows import micros
from arc_server.store.engine.session import StoreSession
from arc_server.store.operations import pushes, targets, transitions


def put_deployment(db: StoreSession, deployment: Deployment, now: datetime) -> None:
    """Fulfil DeploymentStore.put_deployment."""
    _check_targets(db, deployment)
    deployment_id = deployment.deployment_id
    known = targets.register_deployment(db, deployment_id, micros(now))
    for target in deployment.targets:
        _put_target(db, deployment_id, target, micros(now))
    heir = _heir(deployment)
    if heir is not None and not known.has_targets:
        targets.inherit(db, deployment_id, heir)
    db.change(
        "configure_deployment",
        deployment_id=deployment_id,
        default_target_id=deployment.default_target_id,
    )
    if deployment.push_url is not None or known.push_by is None:
        _set_push(db, known, deployment.push_url, deployment.push_token, now, None)
    db.forget_deployment(deployment_id)


def set_push(
    db: StoreSession,
    deployment_id: str,
    push_url: str | None,
    push_token: str | None,
    now: datetime,
    by: str | None,
) -> bool:
    """Fulfil DeploymentStore.set_push."""
    known = db.deployment(deployment_id)
    if known is None:
        if push_url is None:
            return False
        known = targets.register_deployment(db, deployment_id, micros(now))
    _set_push(db, known, push_url, push_token, now, None if push_url is None else by)
    db.change("close_circuit", deployment_id=deployment_id)
    db.forget_deployment(deployment_id)
    return True


def seal_push_token(db: StoreSession, deployment_id: str, former: str, sealed: str) -> None:
    """Fulfil DeploymentStore.seal_push_token."""
    db.change("seal_push_token", deployment_id=deployment_id, former=former, sealed=sealed)
    db.forget_deployment(deployment_id)


def _set_push(
    db: StoreSession,
    known: KnownDeployment,
    push_url: str | None,
    push_token: str | None,
    now: datetime,
    by: str | None,
) -> None:
    """Set where a deployment is pushed to; its live commands follow."""
    db.change(
        "set_push",
        deployment_id=known.deployment_id,
        push_url=push_url,
        push_token=push_token,
        push_by=by,
    )
    if known.push_url != push_url:
        db.change("close_circuit", deployment_id=known.deployment_id)
    if known.push_url is None and push_url is not None:
        transitions.start_pushing(db, known.deployment_id, now)
    elif known.push_url is not None and push_url is None:
        transitions.stop_pushing(db, known.deployment_id, now)


def get_deployment(db: StoreSession, deployment_id: str) -> Deployment | None:
    """Fulfil DeploymentStore.get_deployment."""
    db.forget_deployment(deployment_id)
    known = db.deployment(deployment_id)
    if known is None:
        return None
    return Deployment(
        deployment_id=deployment_id,
        targets=tuple(known.targets.values()),
        default_target_id=known.default_target_id,
        push_url=known.push_url,
        push_token=known.push_token,
        push_by=known.push_by,
        circuit=None if known.push_url is None else pushes.find_circuit(db, deployment_id),
    )


def list_deployments(db: StoreSession) -> Sequence[Deployment]:
    """Fulfil DeploymentStore.list_deployments."""
    found = [get_deployment(db, name) for (name,) in db.rows("list_deployments")]
    return [each for each in found if each is not None]


def _put_target(db: StoreSession, deployment_id: str, target: CommandTarget, now: int) -> None:
    known = targets.register_deployment(db, deployment_id, now)
    old = known.targets.get(target.resource_id)
    if old is None:
        targets.insert_target(db, known, target, now)
        return
    if old == target:
        return
    db.change(
        "retype_target",
        deployment_id=deployment_id,
        resource_id=target.resource_id,
        resource_type=target.resource_type.value,
    )
    db.forget_deployment(deployment_id)
    transitions.move_waiting(db, deployment_id, target.resource_id, target)


def _heir(deployment: Deployment) -> CommandTarget | None:
    """Return the default one of several first targets: it takes over. None without any."""
    choice = [target for target in deployment.targets if is_ordinary(target)]
    for target in choice:
        if target.resource_id == deployment.default_target_id:
            return target
    return choice[0] if choice else None


def _check_targets(db: StoreSession, deployment: Deployment) -> None:
    known = db.deployment(deployment.deployment_id)
    ids = {target.resource_id for target in deployment.targets}
    for resource_id in ids:
        if not resource_id or ":" in resource_id:
            raise CommandTargetIdInvalid(
                "target id: must not be empty or contain ':'", resource_id=resource_id
            )
    default = deployment.default_target_id
    if default in RESERVED_TARGETS:
        raise CommandTargetIdInvalid(
            f"the default target must not be {default!r}: that id is reserved", resource_id=default
        )
    if default is not None and default not in ids and not (known and default in known.targets):
        raise CommandTargetNotFound(
            f"the default target {default!r} is none of the deployment's",
            deployment_id=deployment.deployment_id,
            resource_id=default,
        )
