"""The holder's messages: lease, renew, release, respond, and the envelope of a command."""

from __future__ import annotations

from typing import Annotated

import msgspec

from arc_protocol.messages.base import CommandTarget, Message, Name, Timestamp
from arc_protocol.messages.bodies import BodySpec, CommandResponse, PresignedRequest
from arc_protocol.messages.errors import ErrorBody
from arc_protocol.messages.waiting import WaitingLease


class TraceContext(Message, frozen=True, kw_only=True):
    """W3C trace context, carried through unchanged."""

    traceparent: str
    tracestate: str | None = None


class ResponseHandling(Message, frozen=True, kw_only=True):
    """The routes and limits by which the holder submits its response."""

    max_inline_bytes: int
    submit_response_url: str
    storage_upload_request: PresignedRequest


class Envelope(Message, frozen=True, kw_only=True):
    """A command as its receiver gets it (docs/protocol.md, Types)."""

    protocol: str
    deployment_id: str
    target: CommandTarget | None = None
    """Always there in an envelope of this server; 1.x servers do not have it."""
    command_id: str
    attempt: Annotated[int, msgspec.Meta(ge=1)]
    trace_context: TraceContext | None = None
    deadline: Timestamp | None = None
    command: str
    params: BodySpec
    response_handling: ResponseHandling
    signature: str | None = None
    """Extension: the signature of the create, unchanged."""


class LeaseRequest(Message, frozen=True, kw_only=True):
    """POST /commands/leases. A 1.x agent sends no target, no `wait_seconds` and no `agent_id`."""

    deployment_id: Name
    target: CommandTarget | None = None
    max_leases: int | None = None
    lease_seconds: int | None = None
    wait_seconds: float | None = None
    agent_id: Name | None = None


class LeaseInfo(Message, frozen=True, kw_only=True):
    """One lease. `lease_seconds` counts on a monotonic clock, from before the request."""

    lease_id: str
    lease_expires_at: Timestamp
    command_id: str
    attempt: int
    envelope: Envelope
    lease_seconds: float | None = None
    max_attempts: int | None = None
    """The number of the last attempt, in which a holder that gives up submits the error itself."""


class LeaseResponse(Message, frozen=True, kw_only=True):
    """The answer to a lease request; empty when nothing is ready.

    `cancelled` names leases of this `agent_id` whose commands are to be cancelled.
    """

    leases: list[LeaseInfo]
    cancelled: list[str] | None = None
    epoch: str | None = None
    """Extension: the time that the server's data lives in. A restore changes it."""


class ReleaseRequest(Message, frozen=True, kw_only=True):
    """POST /commands/leases/{id}/release. All fields are optional; `drain` costs no attempt."""

    lease_id: str | None = None
    reason: str | None = None


class RenewRequest(Message, frozen=True, kw_only=True):
    """POST /commands/leases/renew: one call for all that an agent holds."""

    lease_ids: Annotated[list[str], msgspec.Meta(max_length=1_000)]
    lease_seconds: int | None = None
    agent_id: Name | None = None
    waiting: Annotated[list[WaitingLease], msgspec.Meta(max_length=10_000)] | None = None
    """Those of the leases whose commands wait on the host: all others do not."""


class RenewedLease(Message, frozen=True, kw_only=True):
    """A lease that was renewed."""

    lease_id: str
    lease_expires_at: Timestamp
    lease_seconds: float


class RenewResponse(Message, frozen=True, kw_only=True):
    """Each requested lease is in `renewed` or `lost`; `cancelled` are among the renewed."""

    renewed: list[RenewedLease]
    lost: list[str]
    cancelled: list[str]
    epoch: str | None = None
    """Extension: as in the answer to a lease request."""


class SubmittedResponse(Message, frozen=True, kw_only=True):
    """A response, with its lease."""

    lease_id: Name
    command_id: Name
    response: CommandResponse


class RespondRequest(Message, frozen=True, kw_only=True):
    """POST /commands/leases/respond: several responses, each taken or refused by itself."""

    responses: Annotated[list[SubmittedResponse], msgspec.Meta(max_length=1_000)]


class RefusedResponse(Message, frozen=True, kw_only=True):
    """A response that PUT …/response would have refused with `error`."""

    lease_id: str
    error: ErrorBody


class RespondResponse(Message, frozen=True, kw_only=True, omit_defaults=False):
    """The responses that were refused; all others were taken."""

    refused: list[RefusedResponse]
