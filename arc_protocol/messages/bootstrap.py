"""The messages of bootstrap, by which public clients in hosted mode get a short-lived token."""

from __future__ import annotations

from typing import Literal

from arc_protocol.messages.base import CommandTarget, Label, Message, Name, Timestamp


class BootstrapRequest(Message, frozen=True, kw_only=True):
    """POST /commands/bootstrap. `target` is the resource id that a receiver is for."""

    deployment_id: Name
    role: Literal["sender", "receiver"]
    target: Label | None = None


class BootstrapResponse(Message, frozen=True, kw_only=True):
    """The answer of bootstrap; `target` only for receivers."""

    manager_url: str
    """The base URL of the server, without /v1."""
    token: str
    expires_at: Timestamp
    target: CommandTarget | None = None
