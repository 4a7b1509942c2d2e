"""Bounds and defaults of the lifecycle."""

from __future__ import annotations

import msgspec

from arc_protocol.messages.bodies import DEFAULT_INLINE_BYTES
from arc_server.ports.reach import Reach
from arc_server.ports.records import Quotas


class CommandLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds and defaults of commands and leases, filled from the configuration."""

    inline_bytes: int = DEFAULT_INLINE_BYTES
    """Larger bodies are stored as blobs."""
    max_blob_bytes: int = 5 << 30
    """The largest body that may be uploaded."""
    default_max_attempts: int = 5
    max_attempts: int = 100
    """The most that a create may ask for."""
    max_leases: int = 100
    max_lease_seconds: int = 86_400
    response_url_seconds: float = 7 * 86_400
    """The life of the URLs that a response is uploaded and submitted by: it outlasts an outage."""
    upload_url_seconds: float = 3_600
    download_url_seconds: float = 3_600
    list_page: int = 100
    max_list_page: int = 1_000
    kept_event_lines: int = 1_000
    """The last lines of a command that are kept."""
    agents_seen_within_seconds: float = 7 * 86_400
    gone_agents_listed_seconds: float = 86_400
    """An agent that was not seen for this long is listed on request only."""
    silent_seconds: float = 90
    """An agent that gives no sign of life for this long is taken for gone: it polls, renews or
    registers every 30 s."""
    max_agents_listed: int = 10_000
    max_schemas_bytes: int = 1 << 20
    """The most that the schemas of one agent's handlers may take, as JSON."""
    auto_register: bool | None = None
    """Deployments and targets are registered at their first use; None: by callers that may."""
    max_targets: int = 100
    """The targets of a deployment, past which none registers itself."""
    quotas: Quotas = Quotas()
    """The most that one deployment may have."""
    max_answer_bytes: int = 8 << 20
    """The most bytes of inline params that one lease request gets."""

    def registers(self, within: Reach) -> bool:
        """Return True if what a caller names for the first time is registered."""
        return within.may_register if self.auto_register is None else self.auto_register
