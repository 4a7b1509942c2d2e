"""Explanations say what went wrong, with which command, and what to do next."""

from __future__ import annotations

import shlex
from enum import IntEnum
from typing import Any, Final, cast

import msgspec

from arc_client import errors as client
from arc_protocol import errors as server
from arc_protocol.errors import ArcError


class ExitCode(IntEnum):
    """The exit codes of `arc`, for the script that called it."""

    DONE = 0
    FAILED = 1
    """The command failed, expired or was cancelled."""
    USAGE = 2
    """The arguments or the configuration are wrong, or there is no such command."""
    UNREACHABLE = 3
    """The server gives no answer, or cannot serve the request now."""
    NOT_ALLOWED = 4
    STILL_RUNNING = 5
    """The wait ran out before the command ended; it goes on."""
    AGENT_ABSENT = 6
    """No agent was there to take the command: it was cancelled before it ran."""
    INTERRUPTED = 130


class Explanation(msgspec.Struct, frozen=True):
    """An explanation is an error in a person's words."""

    what: str
    exit_code: ExitCode
    details: str | None = None
    next_steps: tuple[str, ...] = ()


_NO_SUCH_ROUTE: Final = ("NOT_FOUND", "METHOD_NOT_ALLOWED", "OPERATION_NOT_SUPPORTED")
_BASE_ONLY: Final = "A server that has the base protocol only does not offer this."
UNKNOWN_COMMAND: Final = "UNKNOWN_COMMAND"
"""The code of a command that has no handler on its host."""
_CODE_HINTS: Final = {
    UNKNOWN_COMMAND: "No handler there has that name. `arc agents --handlers` lists those of"
    " agents that register; only its own program knows those of another receiver.",
    "HANDLER_TIMEOUT": "The handler took longer than it may; see the agent's configuration.",
    "MAX_ATTEMPTS_EXCEEDED": "Every agent that took it was lost or gave it back; see their logs.",
    "DELIVERY_FAILED": "The deployment's push URL refused it.",
    "UNKNOWN": "See the agent's log.",
}


def explain(error: ArcError) -> Explanation:
    """Return what an error means to the person who typed the command."""
    match error:
        case client.CommandError():
            return _of_command(error)
        case client.TokenRefused():
            return Explanation(
                f"the server does not accept this token: {error.message}",
                ExitCode.NOT_ALLOWED,
                next_steps=("Give one with --token-file, or in ARC_TOKEN_FILE.",),
            )
        case client.NotAllowed():
            return Explanation(
                f"this token does not allow it: {error.message}", ExitCode.NOT_ALLOWED
            )
        case client.ServerUnreachable():
            return Explanation(
                error.message,
                ExitCode.UNREACHABLE,
                next_steps=(*_is_it_there(error), *_again(error)),
            )
        case client.UnexpectedAnswer() if not error.context.get("is_ours", False):
            return Explanation(error.message, _code_of_foreign(error), next_steps=_is_it_right())
        case client.ConfigurationError() | client.InvalidParams():
            return Explanation(error.message, ExitCode.USAGE)
        case _:
            return _of_server(error)


def _of_command(error: client.CommandError) -> Explanation:
    """Explain the error of a command that has no result."""
    it = shlex.quote(error.command_id)
    match error:
        case client.AgentAbsent():
            return Explanation(
                f"{error.message}; command {it} was cancelled{error.context.get('suggestion', '')}",
                ExitCode.AGENT_ABSENT,
                next_steps=("Send it anyway, and wait: --wait-for-agent (and a longer --timeout)",),
            )
        case client.CommandCancelled():
            return Explanation(f"command {it} was cancelled", ExitCode.FAILED)
        case client.CommandFailed():
            hint = _CODE_HINTS.get(error.code)
            return Explanation(
                f"{error}{error.context.get('suggestion', '')}",
                ExitCode.FAILED,
                details=error.details,
                next_steps=(hint,) if hint else (),
            )
        case client.CommandTimeout():
            return Explanation(
                f"{error.message}; it goes on{error.context.get('suggestion', '')}",
                ExitCode.STILL_RUNNING,
                next_steps=(f"Wait on: arc wait {it}", f"Stop it: arc cancel {it}"),
            )
        case client.UploadFailed():
            return Explanation(
                f"command {it}: {error.message}; it will not run",
                ExitCode.UNREACHABLE,
                next_steps=_again(error),
            )
        case client.ResultUnreadable():
            return Explanation(
                f"command {it} is done, but {error.message}",
                ExitCode.UNREACHABLE,
                next_steps=(f"Read it again: arc wait {it}",),
            )
        case _:
            return Explanation(error.message, ExitCode.FAILED)


def _of_server(error: ArcError) -> Explanation:
    """Explain a refusal of the server, with its code."""
    if not error.context.get("is_ours", True):
        steps = (*_is_it_right(), _BASE_ONLY) if error.code in _NO_SUCH_ROUTE else _is_it_right()
        return Explanation(error.message, _code_of_foreign(error), next_steps=steps)
    what = f"{error.message} ({error.context.get('server_code') or error.code})"
    match error:
        case server.CommandNotFound():
            steps = ("`arc list` shows the commands that are there.",)
        case server.IdempotencyKeyReused():
            steps = ("Give this one a --key of its own, or the same params as before.",)
        case server.CommandTargetAmbiguous() | server.CommandTargetNotFound():
            steps = ("Name one with --target; `arc agents` shows those that have agents.",)
        case server.InvalidCommand() if "deadline" in error.message:
            steps = ("A --deadline is counted from now by this machine's clock. Is that right?",)
        case _ if error.code in _NO_SUCH_ROUTE:
            steps = (_BASE_ONLY,)
        case _:
            steps = ()
    # Public servers answer some codes with 500 that are no failure of theirs.
    is_known = error.context.get("server_code") == error.code
    status = error.http_status if is_known else error.context.get("status", error.http_status)
    is_over = status in (408, 429) or (status >= 500 and status != 501)
    if is_over:
        return Explanation(what, ExitCode.UNREACHABLE, next_steps=_again(error))
    return Explanation(what, ExitCode.USAGE, next_steps=steps)


def _code_of_foreign(error: ArcError) -> ExitCode:
    """Return the exit code for an answer of a gateway, or of a wrong address."""
    status = error.context.get("status")
    is_gateway = isinstance(status, int) and (status >= 500 or status in (408, 429))
    return ExitCode.UNREACHABLE if is_gateway else ExitCode.USAGE


def _is_it_there(error: ArcError) -> tuple[str, ...]:
    """Return what to look at; nothing for what stands between and was named."""
    is_between = error.context.get("is_between", False)
    return () if is_between else ("Is the server running, and is --server right?",)


def _is_it_right() -> tuple[str, ...]:
    return ("Is --server the address of an ARC server?",)


def _again(error: ArcError) -> tuple[str, ...]:
    """Return how to send a command again that may or may not have been received."""
    key = error.context.get("idempotency_key")
    if not isinstance(key, str):
        return ()
    return (f"To send it again without running it twice: the same with --key {shlex.quote(key)}",)


def as_record(error: ArcError, explanation: Explanation) -> dict[str, Any]:
    """Return an error for a program, as one JSON object."""
    record: dict[str, Any] = {
        "code": error.context.get("server_code") or error.code,
        "message": error.message,
        "commandId": error.context.get("command_id"),
        "state": error.context.get("state"),
        "details": _decoded(explanation.details),
        "idempotencyKey": error.context.get("idempotency_key"),
        "exitCode": int(explanation.exit_code),
    }
    return {name: value for name, value in record.items() if value is not None}


def _decoded(details: str | None) -> Any:
    """Return details that are a JSON object or array as that, other text as it is."""
    try:
        value: Any = msgspec.json.decode(details or "")
    except msgspec.DecodeError:
        return details
    return cast("Any", value) if isinstance(value, dict | list) else details
