"""Records are what the ports take and give: commands, bodies, leases, and who may do what.

All are frozen, and all instants are in UTC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from arc_protocol.lifecycle import TERMINAL, LeaseEnd, ShownState
from arc_protocol.messages.agents import AgentRegistration
from arc_protocol.messages.base import CommandTarget, State
from arc_protocol.messages.events import Progress, RecordedLine

Holder = tuple[str, str, str | None]
"""The agent that holds a lease: deployment, agent id, and the id of its token or credential."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A record is what a port takes or gives: frozen data without behaviour."""


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
    """A body that cannot be read back: its checksum or its form is wrong, or it was removed."""

    reason: str
    is_removed: bool = False
    """True if it was whole, and retention has removed it."""


StoredBody = StoredInline | StoredBlob
StoredParams = StoredInline | StoredBlob | AwaitedBlob | DamagedBody


class StoredSuccess(Record, frozen=True, kw_only=True, tag="success"):
    """A success and its body."""

    body: StoredBody


class StoredError(Record, frozen=True, kw_only=True, tag="error"):
    """A failure, of the handler or of the server's own making."""

    code: str
    message: str
    details: str | None = None


StoredResponse = StoredSuccess | StoredError
ReadResponse = StoredSuccess | StoredError | DamagedBody


# Commands


class CommandRecord(Record, frozen=True, kw_only=True):
    """A command without its bodies: the row that is read and written most."""

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
    """When it was last leased."""
    completed_at: datetime | None = None
    """When it ended."""
    deadline: datetime | None = None
    cancel_requested: bool = False
    lease_id: str | None = None
    """The latest lease ever granted; live only while DISPATCHED."""
    lease_attempt: int | None = None
    """The attempt that `lease_id` was first granted for; part of the response's blob path."""
    lease_expires_at: datetime | None = None
    lease_holder: str | None = None
    """The agent id that asked for it, if it gave one."""
    lease_credential: str | None = None
    """The id of the token or credential that it was granted to; None without one."""
    created_by: str | None = None
    """The id of the token that created the command; None without one."""
    retry_of: str | None = None
    """The id of the command that it runs again."""
    completed_by: str | None = None
    """The id of the token or credential whose response or cancel ended it."""
    error_code: str | None = None
    """The code that it FAILED with."""
    tags: Mapping[str, str] | None = None
    """Those of its sender; None for none."""
    not_before: datetime | None = None
    """The instant from which on it is leased or pushed."""


class Quotas(Record, frozen=True, kw_only=True):
    """The most that one deployment may have. The keys of section `quotas` have these names."""

    max_live_commands: int = 200_000
    max_open_uploads: int = 1_000
    max_stored_bytes: int = 50 << 30
    max_idempotency_keys: int = 10_000_000
    max_agents: int = 20_000


DEFAULT_QUOTAS: Final = Quotas()


class PushLease(Record, frozen=True):
    """The lease that a command is pushed under as soon as it is ready, and until when it lasts."""

    lease_id: str
    expires_at: datetime


class NewCommand(Record, frozen=True, kw_only=True):
    """A command to create: PENDING_UPLOAD if `params` is an AwaitedBlob, else PENDING, or
    DISPATCHED under its push lease."""

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
    """The sender's; kept as it is when params are replaced."""
    push_lease: PushLease | None = None
    """Set if the caller is ready to send the command now. It counts if the deployment is pushed to
    and the params are there."""
    created_by: str | None = None
    """The id of the token that creates it."""
    quotas: Quotas | None = None
    """None: nothing is counted against the deployment."""
    retry_of: str | None = None
    """The id of the command that it runs again."""
    tags: Mapping[str, str] | None = None
    not_before: datetime | None = None
    """PENDING until then, and neither leased nor pushed."""


class Created(Record, frozen=True, kw_only=True):
    """The command that now stands for the request."""

    command: CommandRecord
    is_replay: bool
    """True if an earlier create with the same key made it."""
    params: StoredParams
    """Of the stored command; a repeat in PENDING_UPLOAD needs its path."""


class CommandWithResponse(Record, frozen=True, kw_only=True):
    """A command and, once it has ended, its response."""

    command: CommandRecord
    response: ReadResponse | None = None


class CommandWithBodies(Record, frozen=True, kw_only=True):
    """A command and everything stored for it."""

    command: CommandRecord
    params: StoredParams
    signature: str | None = None
    response: ReadResponse | None = None


class LeasedResponse(Record, frozen=True):
    """A response and the lease that it is submitted under."""

    command_id: str
    lease_id: str
    response: StoredResponse


class Completion(Record, frozen=True, kw_only=True):
    """A command after a response or cancel. `changed` is False if it had ended before."""

    command: CommandRecord
    changed: bool


class EventPage(Record, frozen=True, kw_only=True):
    """Events of a command, in order."""

    command: CommandRecord
    lines: Sequence[RecordedLine]
    progress: Progress | None = None
    dropped: int = 0


class CommandFilter(Record, frozen=True, kw_only=True):
    """A filter selects the commands that match all its fields; None matches any.

    A span of time begins at its first instant and ends before its second.
    """

    deployment_id: str | None = None
    state: State | None = None
    """As on the wire: FAILED takes in what was cancelled."""
    states: tuple[ShownState, ...] | None = None
    """As people see them: FAILED does not."""
    command: str | None = None
    target_id: str | None = None
    created_by: str | None = None
    """The id of the token that created the command."""
    idempotency_key: str | None = None
    tags: Mapping[str, str] | None = None
    """All of these, among others."""
    created_after: datetime | None = None
    created_before: datetime | None = None
    ended_after: datetime | None = None
    ended_before: datetime | None = None

    @property
    def is_by_end(self) -> bool:
        """Return True if a list is in the order in which the commands ended."""
        has_end = self.ended_after is not None or self.ended_before is not None
        return has_end and self.idempotency_key is None

    def shown_states(self) -> frozenset[ShownState] | None:
        """Return the states, as people see them, that match; None if all do."""
        shown = frozenset(ShownState) if self.states is None else frozenset(self.states)
        if self.state is not None:
            shown &= _SHOWN_AS[self.state]
        if self.ended_after is not None or self.ended_before is not None:
            shown &= _SHOWN_ENDS
        return None if len(shown) == len(ShownState) else shown


_SHOWN_AS: Final = {
    state: frozenset(shown for shown in ShownState if shown.stored is state) for state in State
}
_SHOWN_ENDS: Final = frozenset(shown for shown in ShownState if shown.stored in TERMINAL)

ListMark = tuple[int, int]
"""A place in a list: opaque to callers. What follows it is older, or ended earlier."""


class PastLease(Record, frozen=True, kw_only=True):
    """A lease that ended without a response. A push that is sent again keeps its id."""

    lease_id: str
    attempt: int
    holder: str | None = None
    credential: str | None = None
    leased_at: datetime
    ended_at: datetime
    how: LeaseEnd


class Removed(Record, frozen=True, kw_only=True):
    """All that one pass of retention has removed."""

    commands: int = 0
    bodies: int = 0
    """Blobs of commands that stay."""
    uploads: int = 0
    """Commands that ended because their params were never uploaded."""
    agents: int = 0
    tokens: int = 0
    blobs: int = 0
    """Files that no command named any more."""
    blob_bytes: int = 0
    """Their bytes."""
    is_held: bool = False
    """True if blobs were left alone, as a backup is being taken."""


class Collected(Record, frozen=True, kw_only=True):
    """One pass of the collection of blobs."""

    files: int = 0
    bytes: int = 0
    is_held: bool = False
    """True if a backup was being taken: no blob was removed from then on."""


class Purged(Record, frozen=True, kw_only=True):
    """One batch of a purge."""

    command_ids: Sequence[str] = ()
    """The commands that are gone."""
    is_done: bool
    """True if nothing was left for another batch."""


StripMark = tuple[int, int]
"""The place that a walk over ended commands has come to: opaque to callers, (0, 0) at first."""


class Stripped(Record, frozen=True, kw_only=True):
    """One batch of a walk over ended commands that removes their bodies or events."""

    paths: Sequence[str] = ()
    """Blobs that no command names any more."""
    mark: StripMark
    """Where the next batch goes on."""
    is_done: bool
    """True if nothing was left for another batch."""


class CommandPage(Record, frozen=True, kw_only=True):
    """Commands, newest first. `next_before` goes into the next call, None on the last page.

    A page that is not the last may be short, or empty.
    """

    commands: Sequence[CommandRecord]
    next_before: ListMark | None = None


# Leases


class LeaseQuery(Record, frozen=True, kw_only=True):
    """A request for leases. The lease ids come in, so that the store needs no randomness."""

    deployment_id: str
    target: CommandTarget | None
    """None: the deployment's default target; nothing is handed out when it has none."""
    lease_ids: Sequence[str]
    """Fresh ids, as many as leases may be granted at most."""
    lease_seconds: float
    holder: str | None = None
    """The agent id, if the agent gave one."""
    credential: str | None = None
    """The id of the token or credential that asks."""
    auto_register: bool = True
    max_targets: int = 1_000
    """The targets of a deployment, past which none is registered."""
    max_bytes: int | None = None
    """The most bytes of inline params that are handed out together; the first command always is."""


class Grant(Record, frozen=True, kw_only=True):
    """A leased command (state DISPATCHED, its lease in it) and its params."""

    command: CommandRecord
    params: StoredInline | StoredBlob
    signature: str | None = None
    """The sender's, as the create carried it."""


class Granted(Record, frozen=True, kw_only=True):
    """The outcome of a lease or push query.

    `ended` are commands that ended on the way: overdue ones, and ones whose params are damaged
    (FAILED with SERIALIZATION_FAILED). The caller notifies their waiters. Without grants, nothing
    is ready.
    """

    grants: Sequence[Grant]
    ended: Sequence[CommandRecord] = ()
    type_mismatch: bool = False
    """The named target exists with another resource type; nothing was handed out."""
    is_full: bool = False
    """The named target is unknown, and the deployment has as many as it may."""
    is_unknown: bool = False
    """True: the deployment or the target is not registered, and the caller may not register it."""
    inherited: bool = False
    """The target was registered by this query and took over commands of the implicit one."""


class Renewal(Record, frozen=True, kw_only=True):
    """The outcome of a renewal: commands whose leases go on, and the ids of lost leases."""

    renewed: Sequence[CommandRecord]
    lost: Sequence[str]
    kept: Sequence[str] = ()
    """Leases that a restore has undone; their holders go on until `kept_until`."""
    kept_until: datetime | None = None


# Deployments, agents, tokens


class Deployment(Record, frozen=True, kw_only=True):
    """A deployment and how its commands are delivered."""

    deployment_id: str
    targets: Sequence[CommandTarget]
    default_target_id: str | None = None
    push_url: str | None = None
    """Set: commands are pushed there, not leased (docs/protocol.md, Push)."""
    push_token: str | None = None
    """Sealed (push/push_tokens.py), or as an earlier release stored it."""
    push_by: str | None = None
    """The user who set the push URL by `arc-server deployment set`; None: the configuration."""
    circuit: PushCircuit | None = None
    """Set while the push URL does not answer."""


class PushCircuit(Record, frozen=True, kw_only=True):
    """The circuit of a push URL that does not answer: open until `retry_at`, then half-open."""

    deployment_id: str
    opened_at: datetime
    retry_at: datetime
    """When one command is sent as a probe."""
    times: int
    """The number of times that it has opened since the last answer."""
    reason: str
    """Of the last failure."""


class AgentPresence(Record, frozen=True, kw_only=True):
    """An agent that has registered, and what it holds."""

    agent_id: str
    registration: AgentRegistration
    first_seen_at: datetime
    last_seen_at: datetime
    holding: Sequence[CommandRecord] = ()
    credential: str | None = None
    """The id of the token or credential that registered it."""

    @property
    def holder(self) -> Holder:
        """Return the name under which it holds leases."""
        return self.registration.deployment_id, self.agent_id, self.credential


class AgentCursor(Record, frozen=True, array_like=True):
    """The place of an agent in the list, which stays the same as long as the agent is in it."""

    deployment_id: str
    agent_id: str
    credential: str


class AgentPage(Record, frozen=True, kw_only=True):
    """A page of agents. `next` is None on the last page."""

    agents: Sequence[AgentPresence]
    next: AgentCursor | None = None


class TokenSecret(Record, frozen=True, kw_only=True):
    """One secret of a token. Only the SHA-256 of the token's text is stored."""

    token_hash: bytes
    token_id: str
    created_at: datetime
    ends_at: datetime | None = None
    """Set when the token was rotated; the secret is good before that."""


class BearerToken(Record, frozen=True, kw_only=True):
    """A bearer token, without its secrets."""

    token_id: str
    """Safe to show; names the token in lists, rows and logs."""
    scope: str
    """admin, operator, sender, agent or viewer."""
    name: str = ""
    """For people."""
    created_at: datetime
    created_by: str = ""
    """The user who ran the command line."""
    deployments: Sequence[str] | None = None
    """Patterns of the deployments that it is bound to; None: all."""
    commands: Sequence[str] | None = None
    """Patterns of the command names that it is bound to; None: all."""
    target: CommandTarget | None = None
    """The target that an agent's token is bound to."""
    agent_id: str | None = None
    """The agent id that an agent's token is bound to."""
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    """To within some minutes."""


class KnownSecret(Record, frozen=True, kw_only=True):
    """A secret and its token."""

    secret: TokenSecret
    token: BearerToken

    @property
    def ends_at(self) -> datetime | None:
        """Return when the secret ends by itself, None if never."""
        return min(filter(None, (self.secret.ends_at, self.token.expires_at)), default=None)


# Epochs


class Epoch(Record, frozen=True, kw_only=True):
    """The time that a database lives in. A restore begins another one."""

    id: str
    former: frozenset[str] = frozenset()
    """The epochs before it."""
    numbers_from: int = 0
    """Commands with lower numbers are older than the epoch."""
    backed_up_at: datetime | None = None
    began_at: datetime | None = None
    """When the first server started in it; None for the epoch that begins with the database."""
    frozen_until: datetime | None = None
    keys_unknown_until: datetime | None = None

    def is_former(self, lease_id: str | None) -> bool:
        """Return True if a lease is of an epoch before a restore."""
        if not self.former or lease_id is None:
            return False
        return lease_id.partition("_")[2].partition("_")[0] in self.former

    def has_undone(self, lease_id: str | None, command: CommandRecord) -> bool:
        """Return True if a restore has undone a lease, and the command was not leased since.

        A command that was created since had no such lease.
        """
        is_older = self.began_at is None or command.created_at <= self.began_at
        return (
            is_older
            and lease_id != command.lease_id
            and self.is_former(lease_id)
            and (command.lease_id is None or self.is_former(command.lease_id))
        )

    def is_frozen(self, now: datetime) -> bool:
        """Return True while holders of before the restore may come back with their work."""
        return self.frozen_until is not None and now < self.frozen_until


FIRST_EPOCH: Final = Epoch(id="0")
"""The epoch of services that no database stands behind."""


# Credentials of agents


class EnrolToken(Record, frozen=True, kw_only=True):
    """A token that enrols agents of one deployment. Only the SHA-256 of its text is stored."""

    token_hash: bytes
    token_id: str
    """Safe to show."""
    deployment_id: str
    uses: int
    """The most agents that it enrols."""
    used: int = 0
    """The agents that it has enrolled."""
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None
    target: CommandTarget | None = None
    """The target that its agents are bound to; None: the one that each names."""


class Credential(Record, frozen=True, kw_only=True):
    """An agent that enrolled. It may do what a token of scope `agent`, bound to it, may do."""

    credential_id: str
    deployment_id: str
    hostname: str
    """The host name that the agent gave."""
    enrol_token_id: str
    enrolled_at: datetime
    revoked_at: datetime | None = None
    target: CommandTarget | None = None
    """The target that the agent enrolled for; None for the default target."""
    is_target_bound: bool = True
    """False for an agent that enrolled with an earlier release: it may name any target."""


class AgentKey(Record, frozen=True, kw_only=True):
    """A public key of a credential."""

    key_id: str
    credential_id: str
    public_key: bytes
    """Ed25519, 32 bytes."""
    made_at: datetime
    used_at: datetime | None = None
    """When it was first used."""
    ends_at: datetime | None = None
    """Set when a newer key was first used; the key is good before that."""


class KnownKey(Record, frozen=True, kw_only=True):
    """A key and its credential."""

    key: AgentKey
    credential: Credential

    def is_good(self, now: datetime) -> bool:
        """Return True if its signature counts."""
        has_ended = self.key.ends_at is not None and self.key.ends_at <= now
        return self.credential.revoked_at is None and not has_ended


class NewCredential(Record, frozen=True, kw_only=True):
    """An agent to enrol: its credential and first key."""

    credential_id: str
    key_id: str
    public_key: bytes
    hostname: str
    deployment_id: str | None = None
    """The deployment that the agent is configured for, if it gave one."""
    target: CommandTarget | None = None
    """The target that the agent is configured for, if it gave one."""


# Pushes


class PushOutcome(Record, frozen=True, kw_only=True):
    """The answer of a receiver to one push of an envelope."""

    accepted: bool
    """True if it answered 202."""
    is_definite: bool = False
    """True if it was not accepted, and never will be."""
    reason: str = ""
    """Why, for the sender: `HTTP 404`, `connection refused`."""
