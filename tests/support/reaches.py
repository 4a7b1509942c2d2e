"""Reaches of callers, for tests of services and of the store."""

from __future__ import annotations

from arc_protocol.messages.base import CommandTarget
from arc_server.ports.reach import Reach


def only(
    deployment: str, credential: str | None = None, target: CommandTarget | None = None
) -> Reach:
    """The reach of a token that is bound to one deployment."""
    return Reach(deployments=(deployment,), credential=credential, target=target)
