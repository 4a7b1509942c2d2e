"""Answers: JSON, an empty body, or an error. Their headers are built once."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import hdrs, web
from multidict import CIMultiDict

from arc_protocol.codec import encode
from arc_protocol.errors import (
    ArcError,
    MethodNotAllowed,
    RangeNotSatisfiable,
    RateLimited,
    Unauthorized,
    Unavailable,
)
from arc_protocol.messages.errors import error_body

SERVER: Final = "arc-server"
RETRY_AFTER_SECONDS: Final = "1"

_BARE: Final = CIMultiDict({hdrs.SERVER: SERVER, hdrs.CACHE_CONTROL: "no-store"})
"""Answers carry signed URLs and results: no cache may keep them."""
_JSON: Final = CIMultiDict({hdrs.CONTENT_TYPE: "application/json"} | dict(_BARE))


def json_answer(message: Any) -> web.Response:
    """Return a 200 with a message as its body."""
    return web.Response(body=encode(message), headers=_JSON)


def empty_answer() -> web.Response:
    """Return a 200 without a body."""
    return web.Response(headers=_BARE)


def error_answer(error: ArcError) -> web.Response:
    """Return the answer for an error: its status, its JSON body and the headers it calls for."""
    answer = web.Response(body=encode(error_body(error)), status=error.http_status, headers=_JSON)
    if isinstance(error, Unauthorized):
        answer.headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
    elif isinstance(error, MethodNotAllowed):
        answer.headers[hdrs.ALLOW] = error.context["allow"]
    elif isinstance(error, RangeNotSatisfiable):
        answer.headers[hdrs.CONTENT_RANGE] = f"bytes */{error.context['size']}"
    elif isinstance(error, Unavailable | RateLimited):
        seconds = error.context.get("retry_after_seconds", RETRY_AFTER_SECONDS)
        answer.headers[hdrs.RETRY_AFTER] = str(seconds)
        if "per_second" in error.context:  # draft-ietf-httpapi-ratelimit-headers
            of, per_second = error.context["limit_of"], error.context["per_second"]
            answer.headers["RateLimit-Policy"] = f'"{of}";q={per_second:g};w=1'
            answer.headers["RateLimit"] = f'"{of}";r=0;t={seconds}'
    return answer


def raw_error(error: ArcError) -> bytes:
    """Return a whole answer for a connection that has sent no whole request and is closed next."""
    body = encode(error_body(error))
    head = (
        f"HTTP/1.1 {error.http_status} {type(error).__name__}\r\nServer: {SERVER}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Retry-After: {RETRY_AFTER_SECONDS}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
