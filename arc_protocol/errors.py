"""Every error that ARC answers or raises, each with its code, HTTP status and whether to try again.

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
    │   └── IdempotencyKeyReused          IDEMPOTENCY_KEY_REUSED
    ├── CommandExpired                410 COMMAND_EXPIRED
    ├── PayloadTooLarge               413 PAYLOAD_TOO_LARGE
    ├── RangeNotSatisfiable           416 RANGE_NOT_SATISFIABLE
    ├── NoCommandTargets              422 NO_COMMAND_TARGETS
    ├── RateLimited                   429 RATE_LIMITED                        retryable
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

Source: protocol.md 1.2; NOT_FOUND, METHOD_NOT_ALLOWED, REQUEST_TIMEOUT, RANGE_NOT_SATISFIABLE and
HEADERS_TOO_LARGE are ours, for the framework's own answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class ArcError(Exception):
    """The base of every error with a code. `context` holds what a program may want to read."""

    code: ClassVar[str] = "COMMANDS_ERROR"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, /, **context: Any) -> None:
        super().__init__(message)
        self.message = message
        self.context: Mapping[str, Any] = context


class BadRequest(ArcError):
    """The request can never be accepted as it stands."""

    code = "BAD_REQUEST"
    http_status = 400


class InvalidCommand(BadRequest):
    """A malformed or unacceptable request; the message names the field."""

    code = "INVALID_COMMAND"


class InvalidStateTransition(BadRequest):
    """The command is not in a state that allows this."""

    code = "INVALID_STATE_TRANSITION"


class InvalidEnvelope(BadRequest):
    """An envelope that its receiver cannot act on."""

    code = "INVALID_ENVELOPE"


class CommandTargetIdInvalid(BadRequest):
    """A target's resource id that contains `:`."""

    code = "COMMAND_TARGET_ID_INVALID"


class Unauthorized(ArcError):
    """No credential, or one that is not known."""

    code = "UNAUTHORIZED"
    http_status = 401


class Forbidden(ArcError):
    """A good credential that does not cover this."""

    code = "FORBIDDEN"
    http_status = 403


class NotFound(ArcError):
    """No such route or object."""

    code = "NOT_FOUND"
    http_status = 404


class CommandNotFound(NotFound):
    """No such command, or none that the caller may see."""

    code = "COMMAND_NOT_FOUND"


class LeaseNotFound(NotFound):
    """No such lease, or it has ended."""

    code = "LEASE_NOT_FOUND"


class CommandTargetNotFound(NotFound):
    """The deployment has no such target."""

    code = "COMMAND_TARGET_NOT_FOUND"


class DeploymentNotFound(NotFound):
    """No such deployment is registered."""

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
    """Several targets, no default, and none was named."""

    code = "COMMAND_TARGET_AMBIGUOUS"


class LeaseLost(Conflict):
    """The command has been leased again since; this holder's word no longer counts."""

    code = "LEASE_LOST"


class IdempotencyKeyReused(Conflict):
    """The key was used before with other params."""

    code = "IDEMPOTENCY_KEY_REUSED"


class CommandExpired(ArcError):
    """The deadline has passed."""

    code = "COMMAND_EXPIRED"
    http_status = 410


class PayloadTooLarge(ArcError):
    """A body above the limit."""

    code = "PAYLOAD_TOO_LARGE"
    http_status = 413


class RangeNotSatisfiable(ArcError):
    """A byte range outside the blob."""

    code = "RANGE_NOT_SATISFIABLE"
    http_status = 416


class NoCommandTargets(ArcError):
    """The deployment has no target that could take the command."""

    code = "NO_COMMAND_TARGETS"
    http_status = 422


class RateLimited(ArcError):
    """Too many requests; see `Retry-After`."""

    code = "RATE_LIMITED"
    http_status = 429
    retryable = True


class HeadersTooLarge(ArcError):
    """Request line or headers above the limit."""

    code = "HEADERS_TOO_LARGE"
    http_status = 431


class InternalError(ArcError):
    """A failure of the server itself."""

    http_status = 500


class CommandsError(InternalError):
    """An unexpected failure; details are in the server's log only."""

    code = "COMMANDS_ERROR"
    retryable = True


class SerializationFailed(InternalError):
    """Something stored could not be read or written in its form."""

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
    """Known, but not offered here."""

    code = "OPERATION_NOT_SUPPORTED"
    http_status = 501


class TransportDispatchFailed(ArcError):
    """A push whose outcome is unknown or that failed in passing."""

    code = "TRANSPORT_DISPATCH_FAILED"
    http_status = 502
    retryable = True


class TransportDispatchRejected(TransportDispatchFailed):
    """A push that the receiver refused for good."""

    code = "TRANSPORT_DISPATCH_REJECTED"
    retryable = False


class Unavailable(ArcError):
    """The server cannot do this now; nothing was changed."""

    code = "UNAVAILABLE"
    http_status = 503
    retryable = True


class StoreUnavailable(Unavailable):
    """The database could not commit; nothing was changed."""
