"""The sender's messages: create, upload, status, list."""

from __future__ import annotations

from typing import Literal

from arc_protocol.messages.base import (
    CommandTarget,
    IdempotencyKey,
    Label,
    Message,
    Name,
    Signature,
    Size,
    State,
    Tags,
    Timestamp,
)
from arc_protocol.messages.bodies import BodySpec, CommandResponse, PresignedRequest
from arc_protocol.messages.waiting import Waiting


class CreateCommandRequest(Message, frozen=True, kw_only=True):
    """POST /commands. `max_attempts`, an extension, defaults to the server's."""

    deployment_id: Name
    command: Name
    params: BodySpec
    deadline: Timestamp | None = None
    idempotency_key: IdempotencyKey | None = None
    target_resource_id: Label | None = None
    """An empty id is a target that does not exist, not the default."""
    max_attempts: int | None = None
    wait_seconds: float | None = None
    """Extension: hold the answer until the command is terminal, 0 to 60 seconds."""
    signature: Signature | None = None
    """Extension: the sender's signature of this command. Only the receiver verifies it. When a
    create is repeated, the signature of the first counts."""
    not_before: Timestamp | None = None
    """Extension: the instant before which no receiver gets the command."""
    tags: Tags | None = None
    """Extension: words to find the command by. When a create is repeated, those of the first
    count."""
    operation_result_contract: None = None
    """From 3.3.49 on: how the result is to be redacted, as an opaque object. It is refused: taken
    and not kept, it would let readers see what the sender wanted redacted. An object is refused
    unread: 31 MiB of it took six seconds to decode."""


class RetryRequest(Message, frozen=True, kw_only=True):
    """POST /commands/{id}/retry: run a command that has ended again, as a new one."""

    idempotency_key: IdempotencyKey | None = None
    deadline: Timestamp | None = None
    """By default the new command has as much time as the old one had."""


class StorageUpload(Message, frozen=True, kw_only=True):
    """The request that uploads the params, and until when."""

    put_request: PresignedRequest
    expires_at: Timestamp


class CommandStatus(Message, frozen=True, kw_only=True):
    """GET /commands/{id}. All fields after `response` are extensions, and may be absent."""

    command_id: str
    state: State
    attempt: int
    target: CommandTarget | None = None
    """Always there in an answer of this server; 1.x servers do not have it."""
    response: CommandResponse | None = None
    deployment_id: str | None = None
    command: str | None = None
    created_at: Timestamp | None = None
    dispatched_at: Timestamp | None = None
    completed_at: Timestamp | None = None
    deadline: Timestamp | None = None
    max_attempts: int | None = None
    cancel_requested: bool | None = None
    created_by: str | None = None
    """The id of the token that created it."""
    completed_by: str | None = None
    """The id of the token or credential whose response or cancel ended it."""
    retry_of: str | None = None
    """The id of the command that it runs again."""
    error_code: str | None = None
    """The code of a FAILED command in a list, where there is no response."""
    not_before: Timestamp | None = None
    """The instant before which no receiver gets it."""
    tags: Tags | None = None
    """Those of the create."""
    waiting: Waiting | None = None
    """Why it does not run yet, if there is more to say than that it waits for its turn."""


class CreateCommandResponse(Message, frozen=True, kw_only=True):
    """The answer of create; `next` is `upload` while the params are still to be uploaded."""

    command_id: str
    state: State
    inline_allowed_up_to: int
    next: Literal["poll", "upload"]
    storage_upload: StorageUpload | None = None
    status: CommandStatus | None = None
    """The status after `wait_seconds`; `state` is the one that was stored."""
    created: bool | None = None
    """False when an earlier create with this key made the command; 3.3.49 clients read it."""
    is_replay: bool | None = None
    """Extension: true when an earlier create with this key made the command."""


class UploadCompleteRequest(Message, frozen=True, kw_only=True):
    """POST /commands/{id}/upload-complete."""

    size: Size


class UploadCompleteResponse(Message, frozen=True, kw_only=True):
    """The answer of upload-complete."""

    command_id: str
    state: State


class CommandList(Message, frozen=True, kw_only=True, omit_defaults=True):
    """GET /commands, newest first. `cursor` is for the next page, absent on the last."""

    commands: list[CommandStatus]
    cursor: str | None = None
    filtered_by: list[str] | None = None
    """The fields of the query that all of them match. A server that does not know a field leaves it
    out, and lists what does not match, too."""


class CommandCounts(Message, frozen=True, kw_only=True):
    """GET /commands/counts: how many commands are in each state, `CANCELLED` among them."""

    counts: dict[str, int] | None = None
    """None for a caller that may see some names of commands only."""


class AttemptInfo(Message, frozen=True, kw_only=True):
    """One lease or push of a command: who held it, and how that ended."""

    attempt: int
    leased_at: Timestamp
    holder: str | None = None
    """The agent id, if the receiver gave one."""
    credential: str | None = None
    """The id of the token or credential that it was leased to."""
    ended_at: Timestamp | None = None
    """Absent while it goes on."""
    outcome: str | None = None
    """The end: a terminal state, `CANCELLED`, or a word of `LeaseEnd`."""


class AttemptList(Message, frozen=True, kw_only=True):
    """GET /commands/{id}/attempts: in order, the last ones of a command that had very many."""

    attempts: list[AttemptInfo]


class Payload(Message, frozen=True, kw_only=True):
    """GET and PUT /commands/{id}/payload; `command_id` only in the answer of GET."""

    command_id: str | None = None
    params: BodySpec | None = None
    response: CommandResponse | None = None
