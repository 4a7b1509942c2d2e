"""The body of error answers (docs/protocol.md, Errors)."""

from __future__ import annotations

from typing import Any

from arc_protocol.errors import ArcError
from arc_protocol.messages.base import Message


class ErrorBody(Message, frozen=True, kw_only=True):
    """The body of every error answer."""

    code: str
    message: str
    retryable: bool
    http_status_code: int
    context: dict[str, Any] | None = None


def error_body(error: ArcError) -> ErrorBody:
    """Return the JSON body of an error."""
    return ErrorBody(
        code=error.code,
        message=error.message,
        retryable=error.retryable,
        http_status_code=error.http_status,
        context={k: v for k, v in error.context.items() if v is not None} or None,
    )
