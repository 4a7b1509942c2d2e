"""The errors of a sender.

    ArcError                        of arc_protocol: code, http_status, retryable, message, context
    ├── CommandError                there is a command, but no result of it; has `command_id`
    │   ├── CommandFailed               it ended FAILED; `code` and `details` are its handler's
    │   │   └── CommandCancelled        CANCELLED
    │   ├── AgentAbsent                 AGENT_ABSENT: no agent was there; it was cancelled
    │   ├── CommandExpired              COMMAND_EXPIRED: its deadline passed first
    │   ├── CommandTimeout              COMMAND_TIMEOUT: the wait ended, it goes on; has `state`
    │   ├── UploadFailed                UPLOAD_FAILED: its params did not reach the server
    │   └── ResultUnreadable            RESULT_UNREADABLE: done, but its result cannot be read
    ├── NotAllowed
    │   ├── TokenRefused            401 UNAUTHORIZED
    │   └── AccessDenied            403 FORBIDDEN
    ├── ServerUnreachable           SERVER_UNREACHABLE: no answer, for all retries        retryable
    ├── UnexpectedAnswer            UNEXPECTED_ANSWER: not an answer of this protocol
    ├── InvalidParams               INVALID_PARAMS: the params cannot be read or sent
    └── ConfigurationError          CONFIGURATION_ERROR: an unusable server URL or token

Any other refusal of the server is raised as the class that arc_protocol.errors has for its code:
InvalidCommand, CommandNotFound, IdempotencyKeyReused, PayloadTooLarge, RateLimited, …

`context` may carry `command_id`, `idempotency_key` (a create that is sent again with it does not
run twice), `status` (of the HTTP answer) and `retry_after` (seconds).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from arc_protocol import errors
from arc_protocol.codec import UNREADABLE
from arc_protocol.errors import ArcError
from arc_protocol.lifecycle import CANCELLED
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import ErrorResponse
from arc_protocol.messages.waiting import Waiting
from arc_protocol.urls import redact

_SHOWN_TEXT: Final = 200
"""Characters of a foreign error page that are shown."""


class CommandError(ArcError):
    """A command error: the command exists, but there is no result."""

    def __init__(self, message: str, /, *, command_id: str, **context: Any) -> None:
        super().__init__(message, command_id=command_id, **context)
        self.command_id = command_id


class CommandFailed(CommandError):
    """The command ended FAILED. `code` and `details` are its handler's, or the server's."""

    def __init__(
        self, message: str, /, *, code: str, command_id: str, details: str | None = None
    ) -> None:
        super().__init__(message, command_id=command_id)
        # The one class whose code is not fixed.
        self.code = code  # pyright: ignore[reportAttributeAccessIssue]
        self.details = details

    def __str__(self) -> str:
        return f"command {self.command_id} failed: {self.code}: {self.message}"


class CommandCancelled(CommandFailed):
    """The command was cancelled by a sender or an operator."""


class AgentAbsent(CommandError):
    """No agent was there to take the command. It was cancelled, and has not run."""

    code = "AGENT_ABSENT"


class CommandExpired(CommandError, errors.CommandExpired):
    """The command's deadline passed before there was a result."""


class CommandTimeout(CommandError):
    """The wait ran out. The command goes on: wait for it again, or cancel it."""

    code = "COMMAND_TIMEOUT"

    def __init__(
        self,
        message: str,
        /,
        *,
        command_id: str,
        state: State | None,
        waiting: Waiting | None = None,
    ) -> None:
        super().__init__(message, command_id=command_id, state=state)
        self.state = state
        """The state that was last read; None when no status could be read at all."""
        self.waiting = waiting
        """Why the command did not run yet, as it was last read; None when nothing is known."""


class UploadFailed(CommandError):
    """The params did not reach the server: the command waits for them and will not run."""

    code = "UPLOAD_FAILED"


class ResultUnreadable(CommandError):
    """The command succeeded, but its result cannot be fetched, is damaged or is not JSON."""

    code = "RESULT_UNREADABLE"


class NotAllowed(ArcError):
    """The server does not allow this token to do this."""


class TokenRefused(NotAllowed, errors.Unauthorized):
    """The request had no token, or one that the server does not know."""


class AccessDenied(NotAllowed, errors.Forbidden):
    """The token is known but does not cover this request."""


class ServerUnreachable(ArcError):
    """The server gave no answer. It may or may not have received the request."""

    code = "SERVER_UNREACHABLE"
    http_status = 503
    retryable = True


class UnexpectedAnswer(ArcError):
    """The server, or something in front of it, gave an answer that is not of this protocol."""

    code = "UNEXPECTED_ANSWER"
    http_status = 502


class InvalidParams(ArcError):
    """The params cannot be read or sent."""

    code = "INVALID_PARAMS"
    http_status = 400


class ConfigurationError(ArcError):
    """The server URL, the token or a certificate or key file cannot be used."""

    code = "CONFIGURATION_ERROR"
    http_status = 400


class _ErrorAnswer(msgspec.Struct):
    """The error body that every generation of the protocol has."""

    code: str
    message: str


_BY_CODE: Final[dict[str, type[ArcError]]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ArcError) and "code" in vars(kind)
} | {"UNAUTHORIZED": TokenRefused, "FORBIDDEN": AccessDenied}
_BY_STATUS: Final[dict[int, type[ArcError]]] = {
    401: TokenRefused,
    403: AccessDenied,
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    408: errors.RequestTimeout,
    413: errors.PayloadTooLarge,
    429: errors.RateLimited,
    503: errors.Unavailable,
}


def error_of(status: int, body: bytes, *, url: str, retry_after: float | None = None) -> ArcError:
    """Return the error that an HTTP answer stands for: by its code, else by its status.

    `context["is_ours"]` is True if the answer had an ARC error body. An answer without one comes
    from something in front of the server, and the next try may get past it.
    """
    context = {"status": status, "retry_after": retry_after}
    try:
        answer = msgspec.json.decode(body, type=_ErrorAnswer)
    except UNREADABLE:
        kind = _BY_STATUS.get(status, UnexpectedAnswer)
        text = " ".join(body[: 4 * _SHOWN_TEXT].decode("utf-8", "replace").split())[:_SHOWN_TEXT]
        message = f"HTTP {status} from {redact(url)}" + (f": {text}" if text else "")
        return kind(message, is_ours=False, **context)
    kind = _BY_CODE.get(answer.code) or _BY_STATUS.get(status, UnexpectedAnswer)
    return kind(answer.message, is_ours=True, server_code=answer.code, **context)


def failure_of(command_id: str, response: ErrorResponse | None) -> CommandFailed:
    """Return the error that a FAILED command stands for."""
    if response is None:
        return CommandFailed("the server gives no reason", code="UNKNOWN", command_id=command_id)
    kind = CommandCancelled if response.code == CANCELLED else CommandFailed
    return kind(
        response.message, code=response.code, details=response.details, command_id=command_id
    )
