"""Records of the model: commands, keys, deployments, and the rules of their targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from arc_protocol.codec import encode
from arc_protocol.errors import (
    CommandTargetAmbiguous,
    CommandTargetIdInvalid,
    CommandTargetNotFound,
    Forbidden,
    LeaseLost,
)
from arc_protocol.messages.base import (
    IMPLICIT_TARGET,
    RESERVED_TARGETS,
    CommandTarget,
    ResourceType,
    State,
)
from arc_protocol.messages.events import Progress, RecordedLine
from arc_server.ports.events import size_of_line
from arc_server.ports.handler_schemas import split_schemas
from arc_server.ports.reach import Reach
from arc_server.ports.records import (
    AgentPresence,
    AwaitedBlob,
    CommandRecord,
    DamagedBody,
    NewCommand,
    PastLease,
    PushCircuit,
    ReadResponse,
    StoredError,
    StoredInline,
    StoredParams,
    StoredSuccess,
    StripMark,
)
from arc_server.store.engine.rows import micros, tags_text


@dataclass
class StoredCommand:
    """A command and all that belongs to it."""

    seq: int
    command: CommandRecord
    params: StoredParams
    response: ReadResponse | None = None
    signature: str | None = None
    ready_order: int | None = 0
    """None: delayed."""
    push_at: datetime | None = None
    arrived: int = 0
    past: list[PastLease] = field(default_factory=list[PastLease])
    said: Said = field(default_factory=lambda: Said())


@dataclass
class Said:
    """What the holders of a command have said."""

    lease_id: str = ""
    last_number: int = 0
    lines: list[RecordedLine] = field(default_factory=list[RecordedLine])
    dropped: int = 0
    """Unsent by holders of earlier leases."""
    dropped_here: int = 0
    unsent: int = 0
    progress: Progress | None = None


@dataclass
class Key:
    """What an idempotency key stands for."""

    names_target: bool
    is_implicit: bool
    """Made for the implicit target, or for the one that took over from it."""
    target_id: str
    digest: bytes
    command_id: str
    created_at: datetime


@dataclass
class Place:
    """A deployment as registered."""

    targets: dict[str, CommandTarget] = field(default_factory=dict[str, CommandTarget])
    default: str | None = None
    heir: str | None = None
    push_url: str | None = None
    push_token: str | None = None
    push_by: str | None = None
    circuit: PushCircuit | None = None


def mark_of(stored: StoredCommand) -> StripMark:
    assert stored.command.completed_at is not None
    return micros(stored.command.completed_at), stored.seq


def place_in_list(agent: AgentPresence) -> tuple[str, str, str]:
    return (
        agent.registration.deployment_id,
        agent.agent_id,
        agent.credential or "",
    )


def size_of_command(stored: StoredCommand) -> int:
    params, response = stored.params, stored.response
    size = _size(params)
    if isinstance(params, AwaitedBlob):
        is_awaited = stored.command.state is State.PENDING_UPLOAD
        size = max(size, stored.arrived) if is_awaited else stored.arrived
    size += len((tags_text(stored.command.tags) or "").encode())
    if isinstance(response, StoredSuccess):
        return size + _size(response.body)
    if isinstance(response, StoredError):
        size += len(msgspec.msgpack.encode((response.code, response.message, response.details)))
    return size


def size_of_events(said: Said) -> int:
    progress = 0 if said.progress is None else len(encode(said.progress))
    return progress + sum(size_of_line(line.message) for line in said.lines)


def _size(body: StoredParams) -> int:
    if isinstance(body, StoredInline):
        return len(body.data)
    return 0 if isinstance(body, DamagedBody) else body.size or 0


def size_of_agent(agent: AgentPresence) -> int:
    bare, schemas = split_schemas(agent.registration)
    return len(encode(bare)) + (len(msgspec.json.encode(schemas)) if schemas else 0)


def check_holder(command: CommandRecord, lease_id: str | None, within: Reach) -> None:
    if lease_id is None:
        if not within.is_holder(command):
            raise Forbidden("another credential holds the lease of the command")
    elif lease_id != command.lease_id or not within.holds(command):
        raise LeaseLost("the command has been leased again since, or never under this lease")


def name_of_key(new: NewCommand) -> tuple[str, str, str]:
    return new.deployment_id, new.command, new.idempotency_key or ""


def is_good_id(resource_id: str) -> bool:
    return bool(resource_id) and ":" not in resource_id


def is_implicit_target(place: Place, target: CommandTarget) -> bool:
    """Return True if a target is the implicit one or its heir, registered or not."""
    if target.resource_id in RESERVED_TARGETS:
        return False
    return not ordinary_targets(place) or target.resource_id == place.heir


def is_same(key: Key, place: Place, target: CommandTarget) -> bool:
    """Return True if a key was made for that target, or for the implicit one before it."""
    if key.is_implicit:
        return is_implicit_target(place, target)
    return key.target_id == target.resource_id


def default_target(place: Place) -> CommandTarget | None:
    if place.default is not None:
        return place.targets[place.default]
    ordinary = ordinary_targets(place)
    if not ordinary:
        return IMPLICIT_TARGET
    return ordinary[0] if len(ordinary) == 1 else None


def ordinary_targets(place: Place) -> list[CommandTarget]:
    """The registered targets that a create without a target may be for."""
    return [each for each in place.targets.values() if each.resource_id not in RESERVED_TARGETS]


def target_of_create(place: Place, new: NewCommand) -> CommandTarget:
    named = new.target_resource_id
    if named is None:
        default = default_target(place)
        if default is None:
            raise CommandTargetAmbiguous("the deployment has several targets and no default")
        return default
    if ":" in named:
        raise CommandTargetIdInvalid("targetResourceId: must not contain ':'")
    if named in place.targets:
        return place.targets[named]
    if named and new.auto_register and (named in RESERVED_TARGETS or not ordinary_targets(place)):
        return CommandTarget(resource_id=named, resource_type=ResourceType.DAEMON)
    if named == IMPLICIT_TARGET.resource_id and not ordinary_targets(place):
        return IMPLICIT_TARGET
    raise CommandTargetNotFound(f"the deployment has no target {named!r}")


def waits_unqueued(command: CommandRecord, now: datetime) -> bool:
    return command.not_before is not None and now < command.not_before and not command.is_push


def push_time_from(command: CommandRecord, now: datetime) -> datetime:
    return max(now, command.not_before or now)


def push_time(stored: StoredCommand) -> datetime:
    return stored.push_at or stored.command.created_at
