"""Every message of `arc.v1` and of our additions to it, as frozen structs.

Field names are camelCase on the wire and snake_case here. Optional fields that are None are absent
on the wire; on input absent and null are the same. Unknown fields are ignored. Source: protocol.md.
"""

from __future__ import annotations

import binascii
from base64 import b64encode
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, TypeVar, cast

import msgspec

from arc_protocol.errors import ArcError, InvalidCommand

PROTOCOL: Final = "arc.v1"
DEFAULT_INLINE_BYTES: Final = 150_000
"""`inlineAllowedUpTo` and `maxInlineBytes` unless configured otherwise."""
DEFAULT_LEASE_SECONDS: Final = 60
MAX_WAIT_SECONDS: Final = 60
MAX_NAME_LENGTH: Final = 256

MAX_EVENT_TEXT: Final = 4_000
"""Characters of a line or of a progress text."""
MAX_EVENTS_BYTES: Final = 64 * 1024
"""Of one request that brings events."""
SIGNATURE_CHARS: Final = 4096
"""The longest `signature` of a command."""

MAX_SCHEMA_DEPTH: Final = 100
"""Of a handler's schema: what was read must be writable too, at any depth of the stack."""

_NO_CONTROLS: Final = r"\A[^\x00-\x1f\x7f-\x9f]*\Z"

Label = Annotated[str, msgspec.Meta(max_length=MAX_NAME_LENGTH, pattern=_NO_CONTROLS)]
"""Up to 256 characters, no control characters; may be empty."""
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_LENGTH, pattern=_NO_CONTROLS)]
"""A deployment, command, target or agent name: 1 to 256 characters, no control characters."""
IdempotencyKey = Label
Timestamp = Annotated[datetime, msgspec.Meta(tz=True)]
"""RFC 3339 with any offset on input, always UTC with `Z` on output. Never without an offset."""
Signature = Annotated[
    str,
    msgspec.Meta(
        max_length=SIGNATURE_CHARS, pattern=r"\A[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\Z"
    ),
]
"""A JWS in compact form (arc_protocol.signatures). A server looks no further into it than this."""
Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""Bytes of the decoded body, never of its base64."""


class State(StrEnum):
    """Where a command stands. No other state may appear on the wire."""

    PENDING_UPLOAD = "PENDING_UPLOAD"
    PENDING = "PENDING"
    DISPATCHED = "DISPATCHED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    EXPIRED = "EXPIRED"


class ResourceType(StrEnum):
    """What kind of thing a target is."""

    WORKER = "worker"
    CONTAINER = "container"
    DAEMON = "daemon"


class Message(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """The base of every message: frozen, camelCase, None is absent."""


class CommandTarget(Message, frozen=True, kw_only=True, omit_defaults=False):
    """Who a command is for within a deployment."""

    resource_id: Name
    resource_type: ResourceType


IMPLICIT_TARGET: Final = CommandTarget(resource_id="default", resource_type=ResourceType.DAEMON)
"""The target of a deployment that has none registered."""


# Bodies


class HttpBackend(
    Message, frozen=True, kw_only=True, tag_field="type", tag="http", omit_defaults=False
):
    """A presigned HTTP request: send it byte for byte, with exactly these headers."""

    url: str
    method: str
    headers: dict[str, str]


class LocalBackend(
    Message, frozen=True, kw_only=True, tag_field="type", tag="local", omit_defaults=False
):
    """A file on the same host. Only ever read, never produced, by ours."""

    file_path: str
    operation: Literal["put", "get", "delete"]


class PresignedRequest(Message, frozen=True, kw_only=True, omit_defaults=False):
    """Leave to read or write one blob until `expiration`, without a token."""

    backend: HttpBackend | LocalBackend
    expiration: Timestamp
    operation: Literal["put", "get", "delete"]
    path: str


class InlineBody(
    Message, frozen=True, kw_only=True, tag_field="mode", tag="inline", omit_defaults=False
):
    """A body within the message, base64 of the standard alphabet with padding."""

    inline_base64: str

    @classmethod
    def of(cls, data: bytes) -> InlineBody:
        """Wrap raw bytes."""
        return cls(inline_base64=b64encode(data).decode("ascii"))

    def data(self) -> bytes:
        """The raw bytes. Raises ValueError when the base64 is not canonical."""
        return decode_base64(self.inline_base64)


class StorageBody(Message, frozen=True, kw_only=True, tag_field="mode", tag="storage"):
    """A body in blob storage. `size` is in bytes, None when unknown."""

    size: Size | None = None
    storage_get_request: PresignedRequest | None = None
    storage_put_used: bool | None = None


BodySpec = InlineBody | StorageBody


# Responses


class SuccessResponse(Message, frozen=True, kw_only=True, tag_field="status", tag="success"):
    """The handler returned."""

    response: BodySpec


class ErrorResponse(Message, frozen=True, kw_only=True, tag_field="status", tag="error"):
    """The handler, or someone on the way to it, failed. `details` is a string, never an object."""

    code: str
    message: str
    details: str | None = None


CommandResponse = SuccessResponse | ErrorResponse


# Create, upload, status


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


class ErrorBody(Message, frozen=True, kw_only=True):
    """The body of every error answer."""

    code: str
    message: str
    retryable: bool
    http_status_code: int
    context: dict[str, Any] | None = None


# Leases


class TraceContext(Message, frozen=True, kw_only=True):
    """W3C trace context, carried through unchanged."""

    traceparent: str
    tracestate: str | None = None


class ResponseHandling(Message, frozen=True, kw_only=True):
    """How the holder hands in its response."""

    max_inline_bytes: int
    submit_response_url: str
    storage_upload_request: PresignedRequest


class Envelope(Message, frozen=True, kw_only=True):
    """A command as its receiver gets it."""

    protocol: str
    deployment_id: str
    target: CommandTarget | None = None
    """Always there in what we emit; 1.x servers do not know it."""
    command_id: str
    attempt: Annotated[int, msgspec.Meta(ge=1)]
    trace_context: TraceContext | None = None
    deadline: Timestamp | None = None
    command: str
    params: BodySpec
    response_handling: ResponseHandling
    signature: str | None = None
    """Ours: what the create carried, unchanged."""


class LeaseRequest(Message, frozen=True, kw_only=True):
    """POST /commands/leases. `wait_seconds` and `agent_id` are ours; no target is a 1.x agent."""

    deployment_id: Name
    target: CommandTarget | None = None
    max_leases: int | None = None
    lease_seconds: int | None = None
    wait_seconds: float | None = None
    agent_id: Name | None = None


class LeaseInfo(Message, frozen=True, kw_only=True):
    """One lease. `lease_seconds` is ours: count it on a monotonic clock from before the request."""

    lease_id: str
    lease_expires_at: Timestamp
    command_id: str
    attempt: int
    envelope: Envelope
    lease_seconds: float | None = None
    max_attempts: int | None = None
    """The last attempt that there will be: a holder that gives up says why itself."""


class LeaseResponse(Message, frozen=True, kw_only=True):
    """The answer to a lease request; empty when nothing is ready.

    `cancelled` names leases of this `agent_id` whose commands somebody wants cancelled.
    """

    leases: list[LeaseInfo]
    cancelled: list[str] | None = None


class ReleaseRequest(Message, frozen=True, kw_only=True):
    """POST /commands/leases/{id}/release, all of it optional. `drain` costs no attempt."""

    lease_id: str | None = None
    reason: str | None = None


class RenewRequest(Message, frozen=True, kw_only=True):
    """POST /commands/leases/renew: one call for all that an agent holds."""

    lease_ids: Annotated[list[str], msgspec.Meta(max_length=10_000)]
    lease_seconds: int | None = None
    agent_id: Name | None = None


class RenewedLease(Message, frozen=True, kw_only=True):
    """A lease that goes on."""

    lease_id: str
    lease_expires_at: Timestamp
    lease_seconds: float


class RenewResponse(Message, frozen=True, kw_only=True, omit_defaults=False):
    """Each lease asked for is in `renewed` or `lost`; `cancelled` are among the renewed."""

    renewed: list[RenewedLease]
    lost: list[str]
    cancelled: list[str]


class SubmittedResponse(Message, frozen=True, kw_only=True):
    """A response with the lease that it is handed in under."""

    lease_id: Name
    command_id: Name
    response: CommandResponse


class RespondRequest(Message, frozen=True, kw_only=True):
    """POST /commands/leases/respond: one call for all that is finished. Each stands alone."""

    responses: Annotated[list[SubmittedResponse], msgspec.Meta(max_length=1_000)]


class RefusedResponse(Message, frozen=True, kw_only=True):
    """A response that PUT …/response would have refused with `error`."""

    lease_id: str
    error: ErrorBody


class RespondResponse(Message, frozen=True, kw_only=True, omit_defaults=False):
    """What was refused; all the rest was taken."""

    refused: list[RefusedResponse]


# Events


class Progress(Message, frozen=True, kw_only=True):
    """How far a handler says that it is. Without `total`, nobody knows how much there is to do."""

    done: float
    total: float | None = None
    text: Annotated[str, msgspec.Meta(max_length=MAX_EVENT_TEXT)] | None = None


class LogLine(Message, frozen=True, kw_only=True):
    """A line that a handler wants its sender to see."""

    number: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    """Counted up by the holder, from 1 for each lease: a line that is sent again is known by it."""
    at: Timestamp
    """By the holder's clock."""
    level: Literal["debug", "info", "warning", "error"]
    message: Annotated[str, msgspec.Meta(max_length=MAX_EVENT_TEXT)]


class EventsRequest(Message, frozen=True, kw_only=True):
    """POST /commands/{id}/events: what has happened since the last one, 64 KiB at most.

    `progress` is the latest only, and replaces the one before. `dropped`: how many lines the holder
    had no room for so far.
    """

    lease_id: Name
    lines: Annotated[list[LogLine], msgspec.Meta(max_length=1_000)]
    progress: Progress | None = None
    dropped: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0


class RecordedLine(Message, frozen=True, kw_only=True):
    """A line as it was recorded. `place` counts up over all attempts of the command."""

    place: int
    attempt: int
    at: Timestamp
    level: Literal["debug", "info", "warning", "error"]
    message: str


class EventList(Message, frozen=True, kw_only=True):
    """GET /commands/{id}/events: lines after a place, and where the command stands.

    `next` is the place to go on from; once the command is terminal and nothing comes any more, no
    more will. `dropped` lines are not there: the holder or the server had no room for them.
    """

    lines: list[RecordedLine]
    next: int
    state: State
    attempt: int
    dropped: int
    progress: Progress | None = None


# Agents


class HandlerInfo(Message, frozen=True, kw_only=True):
    """A handler that an agent offers. Raises ValueError for a schema nested too deeply."""

    name: Name
    description: str | None = None
    params_schema: dict[str, Any] | None = None
    """JSON Schema of what it takes; absent when it takes anything, or the schema is too large."""
    result_schema: dict[str, Any] | None = None
    """The same of what it returns."""
    idempotent: bool | None = None
    """Whether a second run does no harm: if not, it is not run again once it has started."""
    timeout_seconds: float | None = None
    """The longest that one run may take."""

    def __post_init__(self) -> None:
        _check_depth(self.params_schema, "paramsSchema")
        _check_depth(self.result_schema, "resultSchema")


def _check_depth(schema: dict[str, Any] | None, field: str) -> None:
    """Raises ValueError for a schema nested too deeply."""
    if schema is not None:
        level: list[Any] = [schema]
        for _ in range(MAX_SCHEMA_DEPTH):
            level = [inner for value in level for inner in _inner(value)]
            if not level:
                return
        raise ValueError(f"{field} is nested more than {MAX_SCHEMA_DEPTH} levels deep")


class AgentStatus(Message, frozen=True, kw_only=True):
    """Why an agent takes on no work, or not all that it could; absent when all is well."""

    state: Name
    """`paused` and `stopped` by a person on its host, `degraded` by trouble of its own."""
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


class HeldLease(Message, frozen=True, kw_only=True):
    """A command that an agent is running."""

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
    holding: list[HeldLease]


class DeploymentPresence(Message, frozen=True, kw_only=True):
    """What else the server knows of who serves a deployment: not every receiver says who it is.

    By the server's clock, all of it: the reader's may be wrong.
    """

    now: Timestamp
    watched_since: Timestamp
    """What was before, this server has not seen."""
    is_pushed: bool = False
    """Commands are delivered to a URL: no agent is to be expected."""
    polled_at: Timestamp | None = None
    """When a receiver that does not say who it is last asked for work."""


class AgentList(Message, frozen=True, kw_only=True):
    """GET /agents. `presence` when it was asked about one deployment."""

    agents: list[AgentInfo]
    presence: DeploymentPresence | None = None


# Coding

T = TypeVar("T")

_MAX_ECHO: Final = 200
"""How much of what msgspec says is passed on: it quotes values of any length."""
_MISSING_FIELD: Final = "Object missing required field `"
_ENCODER: Final = msgspec.json.Encoder()
_DECODERS: Final[dict[Any, msgspec.json.Decoder[Any]]] = {}
_FINAL_QUADS: Final = {1: frozenset("AEIMQUYcgkosw048"), 2: frozenset("AQgw")}
"""By padding: the characters before it whose unused low bits are zero (RFC 4648, 3.5)."""


def encode(message: Any) -> bytes:
    """A message as JSON, UTF-8. Datetimes must be in UTC: they end on `Z` then."""
    return _ENCODER.encode(message)


def decode(data: bytes | bytearray | memoryview, kind: type[T]) -> T:
    """JSON as a message of `kind` (a struct or a union of structs).

    Raises InvalidCommand, naming the field, whatever is wrong with the bytes.
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.json.Decoder(kind)
    try:
        _refuse_other_than_utf8(data)
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        message, field = split_path(str(error))
        raise InvalidCommand(f"{field or 'body'}: {message}", field=field) from None
    except msgspec.DecodeError as error:
        raise InvalidCommand(f"body: not valid JSON: {error}") from None
    except UnicodeDecodeError:
        raise InvalidCommand("body: not valid UTF-8") from None
    except RecursionError:
        raise InvalidCommand("body: nested too deeply") from None


def split_path(text: str) -> tuple[str, str | None]:
    """Split what msgspec says into the message and the path of the field, `params.size`."""
    message, found, path = text.rpartition(" - at `")
    if not found:
        message, path = text, ""
    field = path.rstrip("`").removeprefix("$").removeprefix(".")
    if message.startswith(_MISSING_FIELD):
        missing = message.removeprefix(_MISSING_FIELD).removesuffix("`")
        return message, f"{field}.{missing}" if field else missing
    if message.endswith(f"matching regex {_NO_CONTROLS!r}"):
        message = "must not contain control characters"
    if len(message) > _MAX_ECHO:
        message = f"{message[:_MAX_ECHO]}…"
    return message, field or None


def _refuse_other_than_utf8(data: bytes | bytearray | memoryview) -> None:
    """msgspec looks at the text that it keeps only. Raises UnicodeDecodeError."""
    if isinstance(data, memoryview) or not data.isascii():
        str(data, "utf-8")


def _inner(value: Any) -> Iterable[Any]:
    """What a JSON value holds directly."""
    if isinstance(value, dict):
        return cast("dict[str, Any]", value).values()
    return cast("list[Any]", value) if isinstance(value, list) else ()


def decode_base64(text: str) -> bytes:
    """Strict RFC 4648 section 4: standard alphabet, padded, canonical. Raises ValueError."""
    padding = len(text) - len(text.rstrip("="))
    if len(text) % 4 or padding > 2:
        raise ValueError("not padded base64")
    if padding and text[-padding - 1] not in _FINAL_QUADS[padding]:
        raise ValueError("not canonical base64")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64 of the standard alphabet") from None


def utc(moment: datetime) -> datetime:
    """The same instant in UTC. Raises InvalidCommand when it lies outside the calendar."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise InvalidCommand("timestamp: outside the years 1 to 9999") from None


def error_body(error: ArcError) -> ErrorBody:
    """The JSON error body of protocol.md 1.2."""
    return ErrorBody(
        code=error.code,
        message=error.message,
        retryable=error.retryable,
        http_status_code=error.http_status,
        context={k: v for k, v in error.context.items() if v is not None} or None,
    )
