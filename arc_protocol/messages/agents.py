"""The messages about agents: registration, handlers, and the list of agents."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final, cast

import msgspec

from arc_protocol.messages.base import CommandTarget, Label, Message, Name, Timestamp

MAX_SCHEMA_DEPTH: Final = 100
"""The deepest schema of a handler: a deeper one could be read and then not be encoded."""
MAX_DESCRIPTION: Final = 4_000
"""The most characters of a handler's description."""


class HandlerInfo(Message, frozen=True, kw_only=True):
    """A handler that an agent offers. Raises ValueError for a schema nested too deeply."""

    name: Name
    description: Annotated[str, msgspec.Meta(max_length=MAX_DESCRIPTION)] | None = None
    params_schema: dict[str, Any] | None = None
    """JSON Schema of the params; absent when it takes anything, or the schema is too large."""
    result_schema: dict[str, Any] | None = None
    """JSON Schema of the result."""
    idempotent: bool | None = None
    """True: a second run does no harm. If not, the handler is not run again once it has started."""
    timeout_seconds: float | None = None
    """The longest that one run may take."""

    def __post_init__(self) -> None:
        _check_depth(self.params_schema, "paramsSchema")
        _check_depth(self.result_schema, "resultSchema")


def _check_depth(schema: dict[str, Any] | None, field: str) -> None:
    """Raise ValueError if a schema is nested too deeply."""
    if schema is not None:
        level: list[Any] = [schema]
        for _ in range(MAX_SCHEMA_DEPTH):
            level = [inner for value in level for inner in _inner(value)]
            if not level:
                return
        raise ValueError(f"{field} is nested more than {MAX_SCHEMA_DEPTH} levels deep")


class AgentStatus(Message, frozen=True, kw_only=True):
    """Why an agent takes no work, or less than it could; absent when all is well."""

    state: Name
    """`paused` and `stopped` by an operator on its host, `degraded` by trouble of its own, `gone`
    when its process ends."""
    note: Label | None = None
    until: Timestamp | None = None
    """When it ends by itself."""


class AgentRegistration(Message, frozen=True, kw_only=True):
    """PUT /agents/{agentId}. The id is of one process start, never a host name."""

    deployment_id: Name
    version: Label
    hostname: Label
    handlers: Annotated[list[HandlerInfo], msgspec.Meta(max_length=1_000)]
    target: CommandTarget | None = None
    status: AgentStatus | None = None
    replaces: Name | None = None
    """The id of the start before this one in the same place, whose process has ended."""


class HeldCommand(Message, frozen=True, kw_only=True):
    """A command that an agent holds."""

    command_id: str
    command: str
    attempt: int
    lease_expires_at: Timestamp


class AgentInfo(Message, frozen=True, kw_only=True):
    """One agent of GET /agents."""

    agent_id: str
    deployment_id: str
    target: CommandTarget | None = None
    version: str
    hostname: str
    handlers: list[HandlerInfo]
    status: AgentStatus | None = None
    first_seen_at: Timestamp
    last_seen_at: Timestamp
    holding: list[HeldCommand]
    is_gone: bool | None = None
    """True: its process ended and said so, was started anew, or gives no sign of life."""
    credential: str | None = None
    """The id of the token or credential that registered it."""


class PushCircuitInfo(Message, frozen=True, kw_only=True):
    """A push URL that does not answer."""

    since: Timestamp
    retry_at: Timestamp
    """When one command is sent to try it; before that nothing is sent."""
    reason: str
    """Of the last failure, such as `HTTP 503`."""


class DeploymentPresence(Message, frozen=True, kw_only=True):
    """The presence of receivers that do not register, as far as the server knows it.

    Every instant is by the server's clock: the reader's may be wrong.
    """

    now: Timestamp
    watched_since: Timestamp
    """The server has seen nothing from before this instant."""
    is_pushed: bool = False
    """True: commands are pushed to a URL, and no agent is expected."""
    polled_at: Timestamp | None = None
    """When a receiver that does not register last polled."""
    push_circuit: PushCircuitInfo | None = None
    """Extension: set while nothing is pushed, since the push URL does not answer."""


class ReceiverInfo(Message, frozen=True, kw_only=True):
    """A receiver that polls without registering, as far as its polls tell."""

    deployment_id: str
    target: CommandTarget | None = None
    """The target that it names; receivers of 1.x name none."""
    last_seen_at: Timestamp


class AgentList(Message, frozen=True, kw_only=True):
    """GET /agents. `presence` is there when the request names one deployment."""

    agents: list[AgentInfo]
    presence: DeploymentPresence | None = None
    receivers: list[ReceiverInfo] | None = None
    """Receivers that do not register, one for each deployment and target that is polled."""
    cursor: str | None = None
    """For the next page; absent on the last."""


def _inner(value: Any) -> Iterable[Any]:
    """Return the values that a JSON value holds directly."""
    if isinstance(value, dict):
        return cast("dict[str, Any]", value).values()
    return cast("list[Any]", value) if isinstance(value, list) else ()
