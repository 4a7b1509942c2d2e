"""Rules for a disk that fills up: by route, the level from which on it is refused.

Reads are never refused. What frees room, or keeps work from being done twice, goes on: cancels,
renewals and releases change rows in their place. Blobs are judged by their size
(`DiskRoom.reserve`). A test holds that every route that writes has a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from arc_server.disk_room import DiskLevel

REFUSED_AT: Final[Mapping[tuple[str, str], DiskLevel | None]] = MappingProxyType(
    {
        ("POST", "/commands"): DiskLevel.HARD,
        ("POST", "/commands/*/retry"): DiskLevel.HARD,
        ("POST", "/commands/*/events"): DiskLevel.HARD,
        ("POST", "/commands/*/upload-complete"): DiskLevel.CRITICAL,
        ("PUT", "/commands/*/payload"): DiskLevel.CRITICAL,
        ("POST", "/commands/leases"): DiskLevel.CRITICAL,
        ("POST", "/commands/leases/respond"): DiskLevel.CRITICAL,
        ("PUT", "/commands/*/response"): DiskLevel.CRITICAL,
        ("PUT", "/agents/*"): DiskLevel.CRITICAL,
        ("POST", "/agents/enrol"): DiskLevel.CRITICAL,
        ("POST", "/commands/bootstrap"): DiskLevel.CRITICAL,
        ("POST", "/commands/*/cancel"): None,
        ("POST", "/commands/leases/renew"): None,
        ("POST", "/commands/leases/*/release"): None,
        ("POST", "/agents/tokens"): None,
        ("POST", "/agents/keys"): None,
        ("POST", "/agents/challenges"): None,
        ("PUT", "/blobs/**"): None,
    }
)
"""The level from which on a route answers 507; None: it goes on."""
