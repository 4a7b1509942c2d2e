"""What CommandService is written against: the store, the blobs, the dispatcher and the clock.

A store method is one transaction and one answer: durable before it returns. Every write carries
the state (and the lease, where there is one) that it expects, and checks what it hit.
`StoreUnavailable` may come out of any method; nothing was changed then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from arc_protocol.errors import ArcError
from arc_protocol.messages.agents import AgentRegistration
from arc_protocol.messages.base import CommandTarget, State
from arc_protocol.messages.bodies import PresignedRequest
from arc_protocol.messages.events import EventsRequest, Progress, RecordedLine
from arc_protocol.messages.leases import Envelope
from arc_server.ports.credentials import CredentialStore

Holder = tuple[str, str]
"""An agent: deployment and agent id."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The base of what a store takes and gives."""


# Bodies


class StoredInline(Record, frozen=True, kw_only=True, tag="inline"):
    """A body in the database."""

    data: bytes


class StoredBlob(Record, frozen=True, kw_only=True, tag="blob"):
    """A body in the blob store; `size` in bytes."""

    path: str
    size: int


class AwaitedBlob(Record, frozen=True, kw_only=True, tag="awaited"):
    """Params that are still to be uploaded to `path`; `size` is what the sender announced."""

    path: str
    size: int | None = None


class DamagedBody(Record, frozen=True, kw_only=True, tag="damaged"):
    """A body that cannot be read back: its checksum or its form is wrong."""

    reason: str


StoredBody = StoredInline | StoredBlob
StoredParams = StoredInline | StoredBlob | AwaitedBlob | DamagedBody


class StoredSuccess(Record, frozen=True, kw_only=True, tag="success"):
    """A success; its body."""

    body: StoredBody


class StoredError(Record, frozen=True, kw_only=True, tag="error"):
    """A failure, of the handler or of our own making."""

    code: str
    message: str
    details: str | None = None


StoredResponse = StoredSuccess | StoredError
ReadResponse = StoredSuccess | StoredError | DamagedBody


# Commands


class Command(Record, frozen=True, kw_only=True):
    """The hot row of a command: everything but its bodies. Instants are in UTC."""

    command_id: str
    deployment_id: str
    target: CommandTarget
    command: str
    state: State
    attempt: int
    max_attempts: int
    created_at: datetime
    is_push: bool = False
    """Delivered by the dispatcher, never leased by an agent."""
    dispatched_at: datetime | None = None
    """When it was last handed out."""
    completed_at: datetime | None = None
    """When it became terminal."""
    deadline: datetime | None = None
    cancel_requested: bool = False
    lease_id: str | None = None
    """The latest lease ever granted; live only while DISPATCHED."""
    lease_attempt: int | None = None
    """The attempt that `lease_id` was first granted for; part of the response's blob path."""
    lease_expires_at: datetime | None = None
    lease_holder: str | None = None
    """The agent id that asked for it, if it gave one."""


class NewCommand(Record, frozen=True, kw_only=True):
    """What create stores. State is PENDING_UPLOAD iff `params` is an AwaitedBlob, else PENDING."""

    command_id: str
    deployment_id: str
    target_resource_id: str | None
    """The target that the sender named; None: the deployment's default."""
    command: str
    params: StoredInline | StoredBlob | AwaitedBlob
    params_digest: bytes
    """SHA-256 over mode and content, to tell a repeat from another use of the key."""
    max_attempts: int
    created_at: datetime
    deadline: datetime | None = None
    idempotency_key: str | None = None
    auto_register: bool = True
    """Register an unknown deployment, and a target that is named for the first time."""
    signature: str | None = None
    """The sender's; kept as it is whatever becomes of the params."""


class Created(Record, frozen=True, kw_only=True):
    """The command that now stands for the request."""

    command: Command
    is_replay: bool
    """An earlier create with the same key had made it."""
    params: StoredParams
    """Of the stored command; a repeat in PENDING_UPLOAD needs its path."""


class CommandWithResponse(Record, frozen=True, kw_only=True):
    """A command and, once it is terminal, its response."""

    command: Command
    response: ReadResponse | None = None


class CommandWithBodies(Record, frozen=True, kw_only=True):
    """A command and everything stored for it."""

    command: Command
    params: StoredParams
    response: ReadResponse | None = None


class Submission(Record, frozen=True):
    """A response and the lease that it is handed in under."""

    command_id: str
    lease_id: str
    response: StoredResponse


class Completion(Record, frozen=True, kw_only=True):
    """What became of a response. `changed` is False when the command was terminal already."""

    command: Command
    changed: bool


class EventPage(Record, frozen=True, kw_only=True):
    """What the holders of a command have said, in order."""

    command: Command
    lines: Sequence[RecordedLine]
    progress: Progress | None = None
    dropped: int = 0


class CommandFilter(Record, frozen=True, kw_only=True):
    """Which commands to list; None is no restriction. All given must match."""

    deployment_id: str | None = None
    state: State | None = None
    command: str | None = None


class CommandPage(Record, frozen=True, kw_only=True):
    """Newest first. `next_before` goes into the next call, None on the last page."""

    commands: Sequence[Command]
    next_before: int | None = None


# Leases


class LeaseQuery(Record, frozen=True, kw_only=True):
    """Who asks for how much. The lease ids come in, so that the store needs no randomness."""

    deployment_id: str
    target: CommandTarget | None
    """None: the deployment's default target; nothing is handed out when it has none."""
    lease_ids: Sequence[str]
    """Fresh ids, as many as leases may be granted at most."""
    lease_seconds: float
    holder: str | None = None
    auto_register: bool = True


class Grant(Record, frozen=True, kw_only=True):
    """A leased command (state DISPATCHED, its lease in it) and its params."""

    command: Command
    params: StoredInline | StoredBlob
    signature: str | None = None
    """The sender's, as the create carried it."""


class Granted(Record, frozen=True, kw_only=True):
    """The outcome of a lease or push query.

    `ended` are commands that turned terminal on the way: overdue ones, and ones whose params are
    damaged (FAILED with SERIALIZATION_FAILED). Their waiters are to be told. No grants: nothing is
    ready, however many had to be ended first.
    """

    grants: Sequence[Grant]
    ended: Sequence[Command] = ()
    type_mismatch: bool = False
    """The named target exists with another resource type; nothing was handed out."""
    inherited: bool = False
    """The target was registered by this query and took over commands of the implicit one."""


class Renewal(Record, frozen=True, kw_only=True):
    """Which leases go on. `cancelled` are among the renewed."""

    renewed: Sequence[Command]
    lost: Sequence[str]


# Deployments, agents, tokens


class Deployment(Record, frozen=True, kw_only=True):
    """A deployment and how its commands are delivered."""

    deployment_id: str
    targets: Sequence[CommandTarget]
    default_target_id: str | None = None
    push_url: str | None = None
    """Set: commands are pushed there (protocol.md 1.5), not leased."""
    push_token: str | None = None


class AgentPresence(Record, frozen=True, kw_only=True):
    """An agent that has registered, and what it holds."""

    agent_id: str
    registration: AgentRegistration
    first_seen_at: datetime
    last_seen_at: datetime
    holding: Sequence[Command] = ()


class Token(Record, frozen=True, kw_only=True):
    """A bearer token: what it may do. Only the SHA-256 of its text is stored."""

    token_hash: bytes
    token_id: str
    """Safe to show; names the token in lists and logs."""
    scope: str
    """admin, sender or agent."""
    created_at: datetime
    deployment_id: str | None = None
    """Bound to this deployment; None: all."""
    revoked_at: datetime | None = None


class CommandStore(CredentialStore, Protocol):
    """The registry of commands and all operational data, in one database."""

    async def create(self, new: NewCommand) -> Created:
        """Resolve the target, answer a repeat of an idempotency key, or store a new command.

        A repeat (same deployment, target, command name and key) answers the stored command in its
        current state, whatever its deadline. Target rules: protocol.md 1.3.

        Raises IdempotencyKeyReused (same key, other params), InvalidCommand (no repeat, and the
        deadline is not after `created_at`), CommandTargetNotFound, CommandTargetAmbiguous,
        CommandTargetIdInvalid (contains `:`), DeploymentNotFound (unknown and `auto_register` is
        off); nothing is stored then.
        """
        ...

    async def mark_uploaded(self, command_id: str, params: StoredBody, now: datetime) -> Command:
        """PENDING_UPLOAD → PENDING with the params that arrived; ready from `now`, behind the rest.

        Overdue: it becomes EXPIRED. Raises CommandNotFound, InvalidStateTransition (also when it
        has just expired).
        """
        ...

    async def get(self, command_id: str) -> CommandWithResponse | None:
        """A command; its response too if it is terminal. Judges no deadline."""
        ...

    async def get_with_bodies(self, command_id: str) -> CommandWithBodies | None:
        """A command with everything stored for it, in any state."""
        ...

    async def write_payload(
        self, command_id: str, params: StoredBody | None, response: StoredResponse | None
    ) -> None:
        """Replace stored bodies; no state changes. Raises CommandNotFound."""
        ...

    async def lease(self, query: LeaseQuery, now: datetime) -> Granted:
        """Hand out up to `len(lease_ids)` ready commands of one target, first ready first.

        Each becomes DISPATCHED with its own lease until `now + lease_seconds`. Overdue commands on
        the way become EXPIRED, ones with damaged params FAILED; neither counts. Push commands are
        never handed out. With `auto_register` an unknown deployment and the named target are
        registered; the first target of a deployment takes over what waits under the implicit one
        (and its idempotency keys).
        """
        ...

    async def lease_push(
        self, lease_ids: Sequence[str], lease_seconds: float, now: datetime
    ) -> Granted:
        """The same for push commands of all deployments whose next delivery is due.

        A command that was pushed before keeps its lease id (and `lease_attempt`): it is the same
        holder that is asked again, and what it hands in for the first envelope counts.
        """
        ...

    async def next_push_at(self) -> datetime | None:
        """When the earliest waiting push is due, None when none waits."""
        ...

    async def renew(
        self,
        lease_ids: Sequence[str],
        lease_seconds: float,
        now: datetime,
        deployment_id: str | None = None,
    ) -> Renewal:
        """Extend live leases (DISPATCHED, latest lease, lapsed or not) to `now + lease_seconds`.

        Never back: a holder that does not hear the answer goes by what it was told before.
        With `deployment_id`, leases of other deployments are lost to the caller.
        """
        ...

    async def release(
        self,
        lease_id: str,
        now: datetime,
        *,
        costs_attempt: bool,
        deployment_id: str | None = None,
        push_after: datetime | None = None,
    ) -> Command:
        """End a live lease without a response: redelivery or failure, by `lifecycle.hand_back`.

        The command keeps its place in the order. Overdue: EXPIRED. `push_after`: not pushed again
        before that. Raises LeaseNotFound unless it is the latest lease of a DISPATCHED command (of
        that deployment).
        """
        ...

    async def complete(
        self, command_id: str, lease_id: str | None, response: StoredResponse, now: datetime
    ) -> Completion:
        """DISPATCHED → SUCCEEDED or FAILED with the response, exactly once.

        Terminal already: nothing changes. Overdue: it becomes EXPIRED and the response is dropped
        (`changed` is True, the state tells). With `lease_id`: it must be the latest lease; a lapsed
        or released one whose command is PENDING and not taken since completes too. Without: the
        command must be DISPATCHED.

        Raises CommandNotFound, LeaseLost (leased again since, or never that lease),
        InvalidStateTransition (no lease named and not DISPATCHED, or never dispatched).
        """
        ...

    async def complete_all(
        self, submissions: Sequence[Submission], now: datetime, deployment_id: str | None = None
    ) -> Sequence[Completion | ArcError]:
        """`complete` for each, in one transaction: what came of it, or the error it raised.

        With `deployment_id`, commands of other deployments are as if they did not exist.
        """
        ...

    async def add_events(
        self, command_id: str, events: EventsRequest, keep: int, deployment_id: str | None = None
    ) -> Command:
        """Record what the holder of the latest lease says, also when the command has just ended.

        A line whose number was there under this lease is not recorded again. Of all lines of the
        command the last `keep` stay.

        Raises CommandNotFound, LeaseLost when it is not the latest lease.
        """
        ...

    async def events(self, command_id: str, after: int, limit: int) -> EventPage | None:
        """Lines after a place, in order; None when there is no such command."""
        ...

    async def cancel(self, command_id: str, now: datetime) -> Completion:
        """Not yet leased: FAILED with CANCELLED. DISPATCHED: `cancel_requested`. Terminal: nothing.

        Overdue: EXPIRED. Raises CommandNotFound.
        """
        ...

    async def fail(self, command_id: str, error: StoredError, now: datetime) -> Completion:
        """Any live state → FAILED with an error of our own making. Raises CommandNotFound."""
        ...

    async def list(self, which: CommandFilter, before: int | None, limit: int) -> CommandPage:
        """Commands newest first, below the cursor `before`."""
        ...

    # time

    async def expire_due(self, now: datetime, limit: int) -> Sequence[Command]:
        """Live commands whose deadline has passed → EXPIRED, at most `limit`, earliest first."""
        ...

    async def requeue_lapsed(self, now: datetime, limit: int) -> Sequence[Command]:
        """DISPATCHED commands whose lease ran out → redelivered or FAILED, by `hand_back`."""
        ...

    async def forget_idempotency_keys(self, before: datetime, limit: int) -> int:
        """Drop keys made before that instant whose command is no longer stored. How many."""
        ...

    async def shift_leases(self, seconds: float) -> int:
        """Move the end of every live lease, with it the due times of pushes and the last sign of
        life: the wall clock has jumped by that much. How many leases."""
        ...

    async def grant_grace(self, lapsed_since: datetime, now: datetime, until: datetime) -> int:
        """Leases that ran out between `lapsed_since` and `now` end at `until` instead. How many."""
        ...

    async def sign_of_life(self, now: datetime) -> None:
        """Note that the server is up. Never moves back."""
        ...

    async def last_sign_of_life(self) -> datetime | None:
        """When the server was last up, None on a fresh database."""
        ...

    async def has_live_leases(self) -> bool:
        """Whether anything is DISPATCHED: only then must signs of life be durable."""
        ...

    # deployments, agents, tokens

    async def put_deployment(self, deployment: Deployment, now: datetime) -> None:
        """Register or replace a deployment as configured; targets are added, never removed.

        Commands that are not terminal follow: to the first target, from a target's old type to its
        new one, from being leased to being pushed and back. Raises CommandTargetIdInvalid, and
        CommandTargetNotFound when the default is none of the targets.
        """
        ...

    async def get_deployment(self, deployment_id: str) -> Deployment | None: ...

    async def put_agent(
        self, agent_id: str, registration: AgentRegistration, now: datetime
    ) -> AgentPresence:
        """Keep a registration. The same id in another deployment is another agent."""
        ...

    async def touch_agents(self, seen: Mapping[Holder, datetime]) -> None:
        """Note when agents were last heard of; unknown ones are ignored, time never moves back."""
        ...

    async def list_agents(
        self,
        deployment_id: str | None,
        seen_since: datetime,
        limit: int,
        *,
        with_schemas: bool = False,
    ) -> Sequence[AgentPresence]:
        """Agents seen since then, latest first, with what they hold.

        The schemas of their handlers are left out unless asked for.
        """
        ...

    async def put_token(self, token: Token) -> None: ...

    async def find_token(self, token_hash: bytes) -> Token | None: ...

    async def list_tokens(self) -> Sequence[Token]: ...

    async def revoke_token(self, token_id: str, now: datetime) -> bool:
        """False when there is no such token."""
        ...

    # the database itself

    async def check(self) -> None:
        """Raise StoreUnavailable unless the database answers and its schema is current."""
        ...

    async def close(self) -> None:
        """Commit what is queued, then close."""
        ...


class BlobStore(Protocol):
    """Bodies above the inline limit. Paths are relative, like `arc/commands/cmd_1/params`."""

    async def write(self, path: str, chunks: AsyncIterator[bytes], max_bytes: int) -> int:
        """Store a blob whole or not at all; durable before it returns. The size in bytes.

        Raises PayloadTooLarge past `max_bytes`, Conflict when the blob is sealed, and
        StorageOperationFailed.
        """
        ...

    def read(self, path: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end` in bounded chunks. Raises NotFound."""
        ...

    async def size(self, path: str) -> int | None:
        """Bytes, or None when there is no such blob."""
        ...

    async def seal(self, path: str) -> None:
        """No later write may replace the blob. Does nothing when it is sealed. Raises NotFound."""
        ...

    async def delete(self, path: str) -> None:
        """Remove a blob if it is there."""
        ...

    def presign(
        self, operation: str, path: str, base_url: str, expires_at: datetime
    ) -> PresignedRequest:
        """Leave to `get` or `put` one blob until then, by absolute URL; `base_url` ends in /v1."""
        ...


class ResponseLinks(Protocol):
    """Mints the pre-authorised URLs that responses are handed in by."""

    def response_url(
        self, base_url: str, command_id: str, lease_id: str, expires_at: datetime
    ) -> str:
        """Leave to submit one response under one lease until then; `base_url` ends in /v1."""
        ...


class PushOutcome(Record, frozen=True, kw_only=True):
    """What a push target made of an envelope."""

    accepted: bool
    """202."""
    is_definite: bool = False
    """Not accepted, and it never will be."""
    reason: str = ""
    """What to tell the sender: `HTTP 404`, `connection refused`."""


class Dispatcher(Protocol):
    """Delivers envelopes to where commands are pushed."""

    async def push(self, deployment: Deployment, envelope: Envelope) -> PushOutcome:
        """Send once. Never raises for what the other side does."""
        ...

    async def close(self) -> None: ...


class Clock(Protocol):
    """The only source of time. `now` for what is stored, monotonic time for durations here."""

    def now(self) -> datetime:
        """UTC, going on evenly whatever is done to the host's wall clock; it moves by `adjust`.

        Who moves it moves what is stored with it, or leases granted between a jump of the wall
        clock and its discovery would end early or late.
        """
        ...

    def drift(self) -> float:
        """Seconds by which the wall clock is ahead of `now`; negative when it is behind."""
        ...

    def adjust(self, seconds: float) -> None:
        """Move `now` by that much."""
        ...

    def monotonic(self) -> float:
        """Seconds that only go forward."""
        ...

    async def sleep(self, seconds: float) -> None: ...
