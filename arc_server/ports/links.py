"""The port for pre-authorised URLs of the server itself."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class ResponseLinks(Protocol):
    """Mints the URLs that responses are submitted by."""

    def response_url(
        self,
        base_url: str,
        command_id: str,
        lease_id: str,
        expires_at: datetime,
        by: str | None = None,
    ) -> str:
        """Return a URL that takes one response under one lease until `expires_at`.

        `base_url` ends in /v1. The URL ends when `by`, the credential of the lease, is revoked.
        """
        ...
