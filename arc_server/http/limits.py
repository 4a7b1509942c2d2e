"""Limits of the HTTP server."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class HttpLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits on bodies, headers, time and connections."""

    max_body_bytes: Annotated[
        int,
        Meta(ge=1024, le=1 << 30, description="The largest JSON body. A larger one gets a 413."),
    ] = 32 << 20
    max_line_bytes: Annotated[
        int,
        Meta(ge=1024, le=1 << 20, description="The longest request line. A longer one gets a 431."),
    ] = 8190
    max_header_bytes: Annotated[
        int,
        Meta(
            ge=1024, le=1 << 20, description="The longest single header. A longer one gets a 431."
        ),
    ] = 8190
    max_headers: Annotated[
        int, Meta(ge=16, le=10_000, description="The most headers of one request. More get a 431.")
    ] = 100
    max_connections: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="The most connections at a time. Further ones get a 503.",
        ),
    ] = 10_000
    header_seconds: Annotated[
        float,
        Meta(gt=0, le=3600, description="How long the headers of a request may take before a 408."),
    ] = 20
    body_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=86_400,
            description="How long the body of a request may take before a 408, on top of the time"
            " that it needs at `body_bytes_per_second`.",
        ),
    ] = 20
    body_bytes_per_second: Annotated[
        int, Meta(ge=1, description="The slowest upload that is accepted.")
    ] = 1024
    write_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=86_400,
            description="How long a client may read nothing of its answer before it is cut off.",
        ),
    ] = 60
    keep_alive_seconds: Annotated[
        float, Meta(ge=0, le=86_400, description="How long an idle connection stays open.")
    ] = 75
    trust_forwarded: Annotated[
        bool,
        Meta(
            description="Take scheme and host of URLs from X-Forwarded-Proto and X-Forwarded-Host."
            " Use it only behind a proxy that sets both."
        ),
    ] = False
    drain_seconds: Annotated[
        float,
        Meta(ge=0, le=3600, description="How long requests in progress may take after SIGTERM."),
    ] = 20
