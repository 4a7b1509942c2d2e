"""The ports for what the server signs itself: pre-authorised URLs, and places in lists."""

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


class PlaceSigner(Protocol):
    """Signs places in lists, so that no other text passes for one."""

    def sign_place(self, *parts: str) -> str:
        """Return a signature of `parts` in hex."""
        ...

    def has_signed_place(self, signature: str, *parts: str) -> bool:
        """Return True if the signature is this server's, of exactly these parts."""
        ...


class Links(ResponseLinks, PlaceSigner, Protocol):
    """Both."""
