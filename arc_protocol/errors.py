"""The errors of ARC, each with its code, its HTTP status and whether a retry makes sense.

    ArcError
    ├── BadRequest                    400
    │   ├── InvalidCommand                INVALID_COMMAND
    │   ├── InvalidStateTransition        INVALID_STATE_TRANSITION
    │   ├── InvalidEnvelope               INVALID_ENVELOPE
    │   └── CommandTargetIdInvalid        COMMAND_TARGET_ID_INVALID
    ├── Unauthorized                  401 UNAUTHORIZED
    ├── Forbidden                     403 FORBIDDEN
    ├── NotFound                      404 NOT_FOUND (a route or a blob)
    │   ├── CommandNotFound               COMMAND_NOT_FOUND
    │   ├── LeaseNotFound                 LEASE_NOT_FOUND
    │   ├── CommandTargetNotFound         COMMAND_TARGET_NOT_FOUND
    │   └── DeploymentNotFound            DEPLOYMENT_NOT_FOUND
    ├── MethodNotAllowed              405 METHOD_NOT_ALLOWED
    ├── RequestTimeout                408 REQUEST_TIMEOUT                     retryable
    ├── Conflict                      409 CONFLICT
    │   ├── CommandTargetAmbiguous        COMMAND_TARGET_AMBIGUOUS
    │   ├── LeaseLost                     LEASE_LOST
    │   ├── IdempotencyKeyReused          IDEMPOTENCY_KEY_REUSED
    │   └── IdempotencyKeyUnknown         IDEMPOTENCY_KEY_UNKNOWN
    ├── CommandExpired                410 COMMAND_EXPIRED
    ├── PayloadTooLarge               413 PAYLOAD_TOO_LARGE
    ├── RangeNotSatisfiable           416 RANGE_NOT_SATISFIABLE
    ├── NoCommandTargets              422 NO_COMMAND_TARGETS
    ├── RateLimited                   429 RATE_LIMITED                        retryable
    │   └── QuotaExceeded                 QUOTA_EXCEEDED                      retryable
    ├── HeadersTooLarge               431 HEADERS_TOO_LARGE
    ├── InternalError                 500
    │   ├── CommandsError                 COMMANDS_ERROR                      retryable
    │   ├── SerializationFailed           SERIALIZATION_FAILED
    │   ├── StorageOperationFailed        STORAGE_OPERATION_FAILED            retryable
    │   └── KvOperationFailed             KV_OPERATION_FAILED                 retryable
    ├── OperationNotSupported         501 OPERATION_NOT_SUPPORTED
    ├── TransportDispatchFailed       502 TRANSPORT_DISPATCH_FAILED           retryable
    │   └── TransportDispatchRejected     TRANSPORT_DISPATCH_REJECTED
    └── Unavailable                   503 UNAVAILABLE                         retryable
        └── StoreUnavailable              UNAVAILABLE                         retryable

docs/protocol.md, Errors. NOT_FOUND, METHOD_NOT_ALLOWED, REQUEST_TIMEOUT, RANGE_NOT_SATISFIABLE and
HEADERS_TOO_LARGE are extensions, for the HTTP framework's own answers; so is QUOTA_EXCEEDED.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class ArcError(Exception):
    """The base of every error with a code. `context` holds values for programs."""

    code: ClassVar[str] = "COMMANDS_ERROR"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, /, **context: Any) -> None:
        super().__init__(message)
        self.message = message
        self.context: Mapping[str, Any] = context


class BadRequest(ArcError):
    """The request can never be accepted as it is."""

    code = "BAD_REQUEST"
    http_status = 400


class InvalidCommand(BadRequest):
    """The request is malformed or unacceptable. The message names the field."""

    code = "INVALID_COMMAND"


class InvalidStateTransition(BadRequest):
    """The command is not in a state that allows this."""

    code = "INVALID_STATE_TRANSITION"


class InvalidEnvelope(BadRequest):
    """The receiver cannot act on the envelope."""

    code = "INVALID_ENVELOPE"


class CommandTargetIdInvalid(BadRequest):
    """The target's resource id contains a colon."""

    code = "COMMAND_TARGET_ID_INVALID"


class Unauthorized(ArcError):
    """The request has no credential, or one that is not known."""

    code = "UNAUTHORIZED"
    http_status = 401


class Forbidden(ArcError):
    """The credential is known but does not cover this request."""

    code = "FORBIDDEN"
    http_status = 403


class NotFound(ArcError):
    """The route or the object does not exist."""

    code = "NOT_FOUND"
    http_status = 404


class CommandNotFound(NotFound):
    """The command does not exist, or the caller may not see it."""

    code = "COMMAND_NOT_FOUND"


class LeaseNotFound(NotFound):
    """The lease does not exist, or has ended."""

    code = "LEASE_NOT_FOUND"


class CommandTargetNotFound(NotFound):
    """The deployment does not have the target."""

    code = "COMMAND_TARGET_NOT_FOUND"


class DeploymentNotFound(NotFound):
    """The deployment is not registered."""

    code = "DEPLOYMENT_NOT_FOUND"


class MethodNotAllowed(ArcError):
    """The route exists, the method does not."""

    code = "METHOD_NOT_ALLOWED"
    http_status = 405


class RequestTimeout(ArcError):
    """The request did not arrive in time."""

    code = "REQUEST_TIMEOUT"
    http_status = 408
    retryable = True


class Conflict(ArcError):
    """The request contradicts what is stored."""

    code = "CONFLICT"
    http_status = 409


class CommandTargetAmbiguous(Conflict):
    """The deployment has several targets and no default, and the request names none."""

    code = "COMMAND_TARGET_AMBIGUOUS"


class LeaseLost(Conflict):
    """The command has been leased again: this lease can no longer respond, release or renew."""

    code = "LEASE_LOST"


class IdempotencyKeyReused(Conflict):
    """The key was used before with other params."""

    code = "IDEMPOTENCY_KEY_REUSED"


class IdempotencyKeyUnknown(Conflict):
    """The key may have been used in a time that a restore has undone: nothing was created."""

    code = "IDEMPOTENCY_KEY_UNKNOWN"


class CommandExpired(ArcError):
    """The deadline has passed."""

    code = "COMMAND_EXPIRED"
    http_status = 410


class PayloadTooLarge(ArcError):
    """The body is above the limit."""

    code = "PAYLOAD_TOO_LARGE"
    http_status = 413


class RangeNotSatisfiable(ArcError):
    """The byte range lies outside the blob."""

    code = "RANGE_NOT_SATISFIABLE"
    http_status = 416


class NoCommandTargets(ArcError):
    """The deployment has no target that could take the command."""

    code = "NO_COMMAND_TARGETS"
    http_status = 422


class RateLimited(ArcError):
    """The caller sends too many requests; `Retry-After` says when to send the next."""

    code = "RATE_LIMITED"
    http_status = 429
    retryable = True


class QuotaExceeded(RateLimited):
    """The deployment has as much as it may have; `quota` in the context says of what."""

    code = "QUOTA_EXCEEDED"


class HeadersTooLarge(ArcError):
    """The request line or the headers are above the limit."""

    code = "HEADERS_TOO_LARGE"
    http_status = 431


class InternalError(ArcError):
    """The server itself failed."""

    http_status = 500


class CommandsError(InternalError):
    """The server failed unexpectedly. Details are only in its log."""

    code = "COMMANDS_ERROR"
    retryable = True


class SerializationFailed(InternalError):
    """A stored value could not be read or written in its form."""

    code = "SERIALIZATION_FAILED"


class StorageOperationFailed(InternalError):
    """The blob store failed."""

    code = "STORAGE_OPERATION_FAILED"
    retryable = True


class KvOperationFailed(InternalError):
    """The operational store failed."""

    code = "KV_OPERATION_FAILED"
    retryable = True


class OperationNotSupported(ArcError):
    """The operation exists in the protocol, but this server does not offer it."""

    code = "OPERATION_NOT_SUPPORTED"
    http_status = 501


class TransportDispatchFailed(ArcError):
    """The push failed in passing, or its outcome is not known."""

    code = "TRANSPORT_DISPATCH_FAILED"
    http_status = 502
    retryable = True


class TransportDispatchRejected(TransportDispatchFailed):
    """The receiver refused the push for good."""

    code = "TRANSPORT_DISPATCH_REJECTED"
    retryable = False


class Unavailable(ArcError):
    """The server cannot do this now; nothing was changed."""

    code = "UNAVAILABLE"
    http_status = 503
    retryable = True


class StoreUnavailable(Unavailable):
    """The database could not commit; nothing was changed."""
