"""What the HTTP server puts up with."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class HttpLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on bodies, headers, time and connections. Config section `http`."""

    max_body_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 30, description="The largest JSON body; 413 past it.")
    ] = 32 << 20
    max_line_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 20, description="The longest request line; 431 past it.")
    ] = 8190
    max_header_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 20, description="The longest single header; 431 past it.")
    ] = 8190
    max_headers: Annotated[
        int, Meta(ge=16, le=10_000, description="The most headers of one request; 431 past it.")
    ] = 100
    max_connections: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="Connections at a time; those past it get a 503."),
    ] = 10_000
    header_seconds: Annotated[
        float, Meta(gt=0, le=3600, description="How long a request's headers may take; then 408.")
    ] = 20
    body_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=86_400,
            description="How long a request may keep the server waiting for its body, plus the"
            " time that it needs at `body_bytes_per_second`; then 408.",
        ),
    ] = 20
    body_bytes_per_second: Annotated[
        int, Meta(ge=1, description="The slowest upload that is put up with.")
    ] = 1024
    write_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=86_400,
            description="How long a client may read nothing of an answer before it is cut off.",
        ),
    ] = 60
    keep_alive_seconds: Annotated[
        float, Meta(ge=0, le=86_400, description="How long an idle connection is kept open.")
    ] = 75
    trust_forwarded: Annotated[
        bool,
        Meta(
            description="Take scheme and host of URLs from X-Forwarded-Proto and X-Forwarded-Host."
            " Only behind a proxy that sets both."
        ),
    ] = False
    drain_seconds: Annotated[
        float,
        Meta(ge=0, le=3600, description="How long requests in progress may take after SIGTERM."),
    ] = 20
