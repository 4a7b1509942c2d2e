"""The base of every message, and the names, limits and instants that messages share.

Field names are camelCase on the wire and snake_case here. An optional field that is None is absent
on the wire; on input, absent and null are alike. Unknown fields are ignored.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final

import msgspec

PROTOCOL: Final = "arc.v1"
DEFAULT_LEASE_SECONDS: Final = 60
MAX_WAIT_SECONDS: Final = 60
MAX_NAME_LENGTH: Final = 256
MAX_TAGS: Final = 16
SIGNATURE_CHARS: Final = 4096
"""The longest `signature` of a command."""
CONTROLS: Final = r"\x00-\x1f\x7f-\x9f"
INVISIBLE: Final = (
    r"\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
)
"""Marks that change the direction or cut a line, and characters without a width: one name could be
shown as another. Joiners (U+200C, U+200D) belong to words and stay."""
NO_CONTROLS: Final = rf"\A[^{CONTROLS}]*\Z"
VISIBLE: Final = rf"\A[^{CONTROLS}{INVISIBLE}]*\Z"
Label = Annotated[str, msgspec.Meta(max_length=MAX_NAME_LENGTH, pattern=VISIBLE)]
"""Up to 256 characters, no control and no invisible characters; may be empty."""
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_LENGTH, pattern=VISIBLE)]
"""A deployment, command, target or agent name: 1 to 256 characters, none of them invisible."""
IdempotencyKey = Annotated[str, msgspec.Meta(max_length=MAX_NAME_LENGTH, pattern=NO_CONTROLS)]
"""Up to 256 characters, no control characters. Opaque: senders make them by their own rules."""
Timestamp = Annotated[datetime, msgspec.Meta(tz=True)]
"""RFC 3339, on input with any offset, on output always UTC with `Z`. Never without an offset."""
TagKey = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9._-]{1,64}\Z")]
TagValue = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_LENGTH, pattern=VISIBLE)]
Tags = Annotated[dict[TagKey, TagValue], msgspec.Meta(max_length=MAX_TAGS)]
"""Up to 16 words and values that a sender finds its commands by. Values are as names are."""
Signature = Annotated[
    str,
    msgspec.Meta(
        max_length=SIGNATURE_CHARS, pattern=r"\A[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\Z"
    ),
]
"""A JWS in compact form (arc_protocol.signatures). A server checks no more than this pattern."""
Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""Bytes of the decoded body, never of its base64."""


class State(StrEnum):
    """The state of a command. No other state may appear on the wire."""

    PENDING_UPLOAD = "PENDING_UPLOAD"
    PENDING = "PENDING"
    DISPATCHED = "DISPATCHED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    EXPIRED = "EXPIRED"


class ResourceType(StrEnum):
    """The kind of a target."""

    WORKER = "worker"
    CONTAINER = "container"
    DAEMON = "daemon"


class Message(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """The base of every message: frozen, camelCase, None is absent."""


class CommandTarget(Message, frozen=True, kw_only=True, omit_defaults=False):
    """The target of a command within a deployment."""

    resource_id: Name
    resource_type: ResourceType


IMPLICIT_TARGET: Final = CommandTarget(resource_id="default", resource_type=ResourceType.DAEMON)
"""The target of a deployment that has none registered."""
RESERVED_TARGETS: Final = frozenset({"operator", "operations-worker"})
"""Resource ids that a command is for only if it names them (docs/protocol.md, Targets)."""
