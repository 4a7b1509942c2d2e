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
    Timestamp,
)
from arc_protocol.messages.bodies import BodySpec, CommandResponse, PresignedRequest


class CreateCommandRequest(Message, frozen=True, kw_only=True):
    """POST /commands. `max_attempts` is ours; the server's default applies when absent."""

    deployment_id: Name
    command: Name
    params: BodySpec
    deadline: Timestamp | None = None
    idempotency_key: IdempotencyKey | None = None
    target_resource_id: Label | None = None
    """Empty is a target that does not exist, not the default."""
    max_attempts: int | None = None
    wait_seconds: float | None = None
    """Ours: answer when the command is terminal, or after so many seconds, 0 to 60."""
    signature: Signature | None = None
    """Ours: the sender's, of this command. Carried to whoever runs it, and judged there alone. Of a
    repeat by idempotency key the first create's counts."""


class StorageUpload(Message, frozen=True, kw_only=True):
    """Where to PUT the params, and until when."""

    put_request: PresignedRequest
    expires_at: Timestamp


class CommandStatus(Message, frozen=True, kw_only=True):
    """GET /commands/{id}. All after `response` is ours and optional for the reader."""

    command_id: str
    state: State
    attempt: int
    target: CommandTarget | None = None
    """Always there in what we emit; 1.x servers do not know it."""
    response: CommandResponse | None = None
    deployment_id: str | None = None
    command: str | None = None
    created_at: Timestamp | None = None
    dispatched_at: Timestamp | None = None
    completed_at: Timestamp | None = None
    deadline: Timestamp | None = None
    max_attempts: int | None = None
    cancel_requested: bool | None = None


class CreateCommandResponse(Message, frozen=True, kw_only=True):
    """The answer of create; `next` is `upload` while the params are still to be uploaded."""

    command_id: str
    state: State
    inline_allowed_up_to: int
    next: Literal["poll", "upload"]
    storage_upload: StorageUpload | None = None
    status: CommandStatus | None = None
    """Where the command stands after `wait_seconds`; `state` is as it was stored."""
    is_replay: bool | None = None
    """Ours: true when an earlier create with the same key made the command."""


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


class Payload(Message, frozen=True, kw_only=True):
    """GET and PUT /commands/{id}/payload; `command_id` only in the answer of GET."""

    command_id: str | None = None
    params: BodySpec | None = None
    response: CommandResponse | None = None
