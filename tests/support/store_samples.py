"""Samples of commands, bodies and tokens for tests of the store."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from arc_protocol.messages.agents import AgentRegistration, HandlerInfo
from arc_protocol.messages.base import CommandTarget, ResourceType
from arc_server.ports.records import (
    AwaitedBlob,
    BearerToken,
    CommandRecord,
    Deployment,
    Granted,
    LeaseQuery,
    NewCommand,
    StoredError,
    StoredInline,
    StoredSuccess,
    TokenSecret,
)
from arc_server.ports.store import Store

NOW = datetime(2026, 11, 24, 12, 0, 0, 123456, tzinfo=UTC)
DEPLOYMENT = "dep-1"
PARAMS = StoredInline(data=b'{"region":"eu"}')
RESULT = StoredSuccess(body=StoredInline(data=b'{"rows":3}'))
HANDLER_ERROR = StoredError(code="HANDLER_ERROR", message="no such table", details="line 3")
UPLOAD = AwaitedBlob(path="arc/commands/x/params", size=5_000_000)

_numbers = itertools.count(1)


def after(seconds: float) -> datetime:
    """`seconds` after NOW."""
    return NOW + timedelta(seconds=seconds)


def daemon(resource_id: str) -> CommandTarget:
    """A target of the commonest type."""
    return CommandTarget(resource_id=resource_id, resource_type=ResourceType.DAEMON)


def worker(resource_id: str) -> CommandTarget:
    """A target of another type."""
    return CommandTarget(resource_id=resource_id, resource_type=ResourceType.WORKER)


def new(**changes: Any) -> NewCommand:
    """A command to create, its id fresh."""
    return NewCommand(
        **{
            "command_id": f"cmd_{next(_numbers)}",
            "deployment_id": DEPLOYMENT,
            "target_resource_id": None,
            "command": "reports.generate",
            "params": PARAMS,
            "params_digest": b"one",
            "max_attempts": 3,
            "created_at": NOW,
            **changes,
        }
    )


def query(count: int = 1, **changes: Any) -> LeaseQuery:
    """A request for leases, their ids fresh."""
    return LeaseQuery(
        **{
            "deployment_id": DEPLOYMENT,
            "target": None,
            "lease_ids": [f"lease_{next(_numbers)}" for _ in range(count)],
            "lease_seconds": 60,
            "holder": "agent-1",
            **changes,
        }
    )


async def create(store: Store, **changes: Any) -> CommandRecord:
    """A stored command."""
    return (await store.create(new(**changes))).command


async def lease(store: Store, count: int = 1, at: datetime = NOW, **changes: Any) -> Granted:
    """Ask for leases."""
    return await store.lease(query(count, **changes), at)


async def leased(store: Store, at: datetime = NOW, **changes: Any) -> CommandRecord:
    """Return a stored command that an agent holds."""
    command = await create(store, **changes)
    granted = await lease(store, at=at)
    assert granted_ids(granted) == [command.command_id], "something else was ready before"
    return granted.grants[0].command


async def read(store: Store, command_id: str) -> CommandRecord:
    """A command as it stands."""
    found = await store.get(command_id)
    assert found is not None
    return found.command


async def response_of(store: Store, command_id: str) -> Any:
    """Return what a sender would see."""
    found = await store.get(command_id)
    assert found is not None
    return found.response


def ids(commands: Sequence[CommandRecord]) -> list[str]:
    """Their ids, in order."""
    return [command.command_id for command in commands]


def granted_ids(granted: Granted) -> list[str]:
    """The ids of what was handed out, in order."""
    return [grant.command.command_id for grant in granted.grants]


def deployment(*targets: CommandTarget, **changes: Any) -> Deployment:
    """A deployment as configured."""
    return Deployment(**{"deployment_id": DEPLOYMENT, "targets": targets, **changes})


def pushed(**changes: Any) -> Deployment:
    """A deployment whose commands are pushed."""
    return deployment(push_url="https://worker.example/_alien/commands", **changes)


def registration(**changes: Any) -> AgentRegistration:
    """Return what an agent says of itself."""
    return AgentRegistration(
        **{
            "deployment_id": DEPLOYMENT,
            "version": "1.0",
            "hostname": "db-7",
            "handlers": [HandlerInfo(name="arc.ping", params_schema={"type": "object"})],
            **changes,
        }
    )


def token(**changes: Any) -> BearerToken:
    """A token."""
    number = next(_numbers)
    return BearerToken(
        **{
            "token_id": f"tok_{number}",
            "scope": "sender",
            "created_at": NOW,
            **changes,
        }
    )


def secret(of: BearerToken, **changes: Any) -> TokenSecret:
    """A secret of a token."""
    return TokenSecret(
        **{
            "token_hash": next(_numbers).to_bytes(32, "big"),
            "token_id": of.token_id,
            "created_at": of.created_at,
            **changes,
        }
    )
