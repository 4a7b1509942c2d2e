"""Deployments and their targets, agents, tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from arc_protocol.codec import encode
from arc_protocol.errors import CommandTargetIdInvalid, CommandTargetNotFound
from arc_protocol.messages.agents import AgentRegistration
from arc_protocol.messages.base import CommandTarget
from arc_server.ports.handler_schemas import HandlerSchemas, split_schemas, with_schemas
from arc_server.ports.records import AgentPresence, Deployment, Holder, Token
from arc_server.store.engine.rows import (
    Row,
    command_of,
    micros,
    micros_or_none,
    moment,
    moment_or_none,
)
from arc_server.store.engine.session import Session
from arc_server.store.operations import targets
from arc_server.store.operations.credentials import count_revocation

_REGISTRATION: Final = msgspec.json.Decoder(AgentRegistration)
_SCHEMAS: Final = msgspec.json.Decoder(dict[str, HandlerSchemas])


def put_deployment(db: Session, deployment: Deployment, now: datetime) -> None:
    """See Store.put_deployment. Waiting commands follow: to the heir of the implicit target,
    to a target's new type, and from being leased to being pushed and back."""
    _check_targets(db, deployment)
    deployment_id = deployment.deployment_id
    known = targets.register_deployment(db, deployment_id, micros(now))
    for target in deployment.targets:
        _put_target(db, deployment_id, target, micros(now))
    if deployment.targets and not known.targets:
        targets.inherit(db, deployment_id, _heir(deployment))
    db.change(
        "configure_deployment",
        deployment_id=deployment_id,
        default_target_id=deployment.default_target_id,
        push_url=deployment.push_url,
        push_token=deployment.push_token,
    )
    if (known.push_url is None) != (deployment.push_url is None):
        db.forget_commands()
        if deployment.push_url is None:
            db.change("stop_pushing", deployment_id=deployment_id)
        else:
            db.change("start_pushing", deployment_id=deployment_id, now=micros(now))
    db.forget_deployment(deployment_id)


def _put_target(db: Session, deployment_id: str, target: CommandTarget, now: int) -> None:
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
    targets.move_waiting(db, deployment_id, target.resource_id, target)


def _heir(deployment: Deployment) -> CommandTarget:
    """Of several first targets the default one takes over."""
    for target in deployment.targets:
        if target.resource_id == deployment.default_target_id:
            return target
    return deployment.targets[0]


def _check_targets(db: Session, deployment: Deployment) -> None:
    known = db.deployment(deployment.deployment_id)
    ids = {target.resource_id for target in deployment.targets}
    for resource_id in ids:
        if not resource_id or ":" in resource_id:
            raise CommandTargetIdInvalid(
                "target id: must not be empty or contain ':'", resource_id=resource_id
            )
    default = deployment.default_target_id
    if default is not None and default not in ids and not (known and default in known.targets):
        raise CommandTargetNotFound(
            f"the default target {default!r} is none of the deployment's",
            deployment_id=deployment.deployment_id,
            resource_id=default,
        )


def get_deployment(db: Session, deployment_id: str) -> Deployment | None:
    """See Store.get_deployment."""
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
    )


def put_agent(
    db: Session, agent_id: str, registration: AgentRegistration, now: datetime
) -> AgentPresence:
    """See Store.put_agent."""
    bare, schemas = split_schemas(registration)
    db.change(
        "put_agent",
        agent_id=agent_id,
        deployment_id=registration.deployment_id,
        registration=encode(bare),
        schemas=msgspec.json.encode(schemas) if schemas else None,
        now=micros(now),
    )
    [row] = db.rows("find_agent", deployment_id=registration.deployment_id, agent_id=agent_id)
    return _presence(db, row, has_schemas=True)


def touch_agents(db: Session, seen: Mapping[Holder, datetime]) -> None:
    """See Store.touch_agents."""
    for (deployment_id, agent_id), at in seen.items():
        db.change("touch_agent", deployment_id=deployment_id, agent_id=agent_id, now=micros(at))


def list_agents(
    db: Session,
    deployment_id: str | None,
    seen_since: datetime,
    limit: int,
    has_schemas: bool,
) -> Sequence[AgentPresence]:
    """See Store.list_agents."""
    since = micros(seen_since)
    rows = (
        db.rows("list_agents", seen_since=since, limit=limit, with_schemas=has_schemas)
        if deployment_id is None
        else db.rows(
            "list_agents_of_deployment",
            deployment_id=deployment_id,
            seen_since=since,
            limit=limit,
            with_schemas=has_schemas,
        )
    )
    return [_presence(db, row, has_schemas=has_schemas) for row in rows]


def _presence(db: Session, row: Row, *, has_schemas: bool) -> AgentPresence:
    # A row from before there was a place for schemas has them in its registration.
    registration = _REGISTRATION.decode(row[1])
    if not has_schemas:
        registration, _ = split_schemas(registration)
    elif row[4] is not None:
        registration = with_schemas(registration, _SCHEMAS.decode(row[4]))
    held = db.rows("held_by", holder=row[0], deployment_id=registration.deployment_id)
    return AgentPresence(
        agent_id=row[0],
        registration=registration,
        first_seen_at=moment(row[2]),
        last_seen_at=moment(row[3]),
        holding=[command_of(each) for each in held],
    )


def put_token(db: Session, token: Token) -> None:
    """See Store.put_token."""
    db.change(
        "put_token",
        token_hash=token.token_hash,
        token_id=token.token_id,
        scope=token.scope,
        created_at=micros(token.created_at),
        deployment_id=token.deployment_id,
        revoked_at=micros_or_none(token.revoked_at),
    )


def find_token(db: Session, token_hash: bytes) -> Token | None:
    """See Store.find_token."""
    row = db.row("find_token", token_hash=token_hash)
    return None if row is None else _token(row)


def list_tokens(db: Session) -> Sequence[Token]:
    """See Store.list_tokens."""
    return [_token(row) for row in db.rows("list_tokens")]


def revoke_token(db: Session, token_id: str, now: datetime) -> bool:
    """See Store.revoke_token. A token that is revoked already stays revoked since then."""
    if not db.change("revoke_token", token_id=token_id, now=micros(now)):
        return db.row("has_token", token_id=token_id) is not None
    count_revocation(db)
    return True


def _token(row: Row) -> Token:
    return Token(
        token_hash=row[0],
        token_id=row[1],
        scope=row[2],
        created_at=moment(row[3]),
        deployment_id=row[4],
        revoked_at=moment_or_none(row[5]),
    )
