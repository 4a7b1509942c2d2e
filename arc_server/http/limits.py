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
    max_control_body_bytes: Annotated[
        int,
        Meta(
            ge=4096,
            le=1 << 30,
            description="The largest body of a request that carries no command: to lease, renew,"
            " release, or complete an upload.",
        ),
    ] = 64 << 10
    max_registration_bytes: Annotated[
        int,
        Meta(ge=4096, le=1 << 30, description="The largest registration of an agent."),
    ] = 2 << 20
    registration_bytes_per_second: Annotated[
        float,
        Meta(
            gt=0,
            le=1 << 40,
            description="The most bytes of registrations a second of one token, after a burst of"
            " twice as many. Further ones get a 429.",
        ),
    ] = 4 << 20
    body_memory_bytes: Annotated[
        int,
        Meta(
            ge=1 << 20,
            le=1 << 40,
            description="The memory that request bodies may take together while they arrive. Past"
            " it a request gets a 503. One token gets at most half of it.",
        ),
    ] = 256 << 20
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
    ] = 64
    max_head_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            le=1 << 24,
            description="The most bytes of a request line and its headers together. More get a"
            " 431.",
        ),
    ] = 64 << 10
    max_connections: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="The most connections at a time. For a further one the server closes the"
            " oldest that has shown no good credential, or else the oldest idle one; if there is"
            " none, the further one gets a 503.",
        ),
    ] = 10_000
    max_connections_per_address: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="The most connections of one address (of one /64 with IPv6), treated like"
            " `max_connections`. Those of `trusted_proxies` are not counted.",
        ),
    ] = 5_000
    max_requests_per_token: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="The most requests of one token at a time, waiting ones included. Further"
            " ones get a 429. Of more connections than that, the others are closed as those"
            " without a good token are.",
        ),
    ] = 5_000
    requests_per_second: Annotated[
        float,
        Meta(
            gt=0,
            le=1_000_000,
            description="The most requests a second of one token, after a burst of twice as many."
            " Further ones get a 429, but a read of a status waits for its turn.",
        ),
    ] = 2_000
    strangers_per_second: Annotated[
        float,
        Meta(
            gt=0,
            le=1_000_000,
            description="The most requests a second, from one address (one /64 with IPv6), with a"
            " token or a signature that is not good. Further ones get a 429 in place of a 401."
            " Requests with a good one do not count.",
        ),
    ] = 50
    header_seconds: Annotated[
        float,
        Meta(gt=0, le=3600, description="How long the headers of a request may take before a 408."),
    ] = 20
    body_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=86_400,
            description="The time over which the rate of a body is measured. A body that arrives"
            " more slowly than `body_bytes_per_second` over this time gets a 408.",
        ),
    ] = 20
    body_bytes_per_second: Annotated[
        int, Meta(ge=1, description="The slowest body that is accepted.")
    ] = 1024
    body_total_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=86_400,
            description="How long the server waits for a whole JSON body before a 408. Uploads to"
            " signed URLs have no such limit.",
        ),
    ] = 300
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
    trusted_proxies: Annotated[
        list[str],
        Meta(
            description="The addresses and networks of proxies, and `unix` for those that use a"
            " Unix socket. X-Forwarded-For, -Proto and -Host count in their requests only."
        ),
    ] = []
    strict_paths: Annotated[
        bool,
        Meta(
            description="Refuse with a 404 each spelling of a path but one: docs/protocol.md."
            " For a proxy with rules for paths."
        ),
    ] = False
    drain_seconds: Annotated[
        float,
        Meta(ge=0, le=3600, description="How long requests in progress may take after SIGTERM."),
    ] = 20
