"""Bounds and defaults of the lifecycle, as CommandService takes them."""

from __future__ import annotations

import msgspec

from arc_protocol.messages.bodies import DEFAULT_INLINE_BYTES


class CommandLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds and defaults of the lifecycle; config keys of the same names."""

    inline_bytes: int = DEFAULT_INLINE_BYTES
    """Larger bodies go to blob storage."""
    max_blob_bytes: int = 5 << 30
    """The largest body that may be uploaded."""
    default_max_attempts: int = 5
    max_attempts: int = 100
    """The most that a create may ask for."""
    max_leases: int = 1_000
    max_lease_seconds: int = 3_600
    response_url_seconds: float = 7 * 86_400
    """Life of the URLs that a response is uploaded and handed in by: outlasts long outages."""
    upload_url_seconds: float = 3_600
    download_url_seconds: float = 3_600
    list_page: int = 100
    max_list_page: int = 1_000
    kept_event_lines: int = 1_000
    """Of a command: the last ones that its holders have said."""
    agents_seen_within_seconds: float = 7 * 86_400
    max_agents_listed: int = 10_000
    max_schemas_bytes: int = 1 << 20
    """What the schemas of one agent's handlers may take, as JSON."""
    auto_register: bool = True
    """Register deployments and targets at their first use."""
