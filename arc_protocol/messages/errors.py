"""The body of error answers (docs/protocol.md, Errors)."""

from __future__ import annotations

import re
from typing import Any, Final

from arc_protocol.errors import ArcError
from arc_protocol.messages.base import CONTROLS, INVISIBLE, Message

_UNFIT: Final = re.compile(f"(?!\n)[{CONTROLS}{INVISIBLE}]")


class ErrorBody(Message, frozen=True, kw_only=True):
    """The body of every error answer."""

    code: str
    message: str
    retryable: bool
    http_status_code: int
    context: dict[str, Any] | None = None


def error_body(error: ArcError) -> ErrorBody:
    """Return the JSON body of an error. What it echoes of a request has its controls escaped."""
    return ErrorBody(
        code=error.code,
        message=_fit(error.message),
        retryable=error.retryable,
        http_status_code=error.http_status,
        context={k: _fit(v) for k, v in error.context.items() if v is not None} or None,
    )


def _fit(value: Any) -> Any:
    """Return a text with its control and invisible characters escaped, another value as it is."""
    return _UNFIT.sub(_escaped, value) if isinstance(value, str) else value


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
