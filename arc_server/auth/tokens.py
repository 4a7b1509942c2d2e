"""Bearer tokens: 256 bits of a CSPRNG each.

Only the SHA-256 of a token is stored. A token cannot be guessed, so a slow hash would only add
load.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec

from arc_server.ports.records import BearerToken

SECRET_BYTES: Final = 32
_TEXT: Final = re.compile(r"arc_(?:admin|sender|agent)_[A-Za-z0-9_-]{43}", re.ASCII)


class Scope(StrEnum):
    """The rights of a token."""

    ADMIN = "admin"
    """May do everything, including the repairs of an operator."""
    SENDER = "sender"
    """May create commands and read their results."""
    AGENT = "agent"
    """May lease commands and respond to them."""


class NewToken(msgspec.Struct, frozen=True, kw_only=True):
    """A new token. `text` is shown once and stored nowhere."""

    text: str
    stored: BearerToken


def new_token(scope: Scope, deployment_id: str | None, now: datetime) -> NewToken:
    """Make a token `arc_<scope>_<43 characters>`, bound to one deployment or to none."""
    text = f"arc_{scope}_{secrets.token_urlsafe(SECRET_BYTES)}"
    return NewToken(
        text=text,
        stored=BearerToken(
            token_hash=hash_token(text),
            token_id=f"tok_{secrets.token_hex(6)}",
            scope=scope.value,
            created_at=now,
            deployment_id=deployment_id,
        ),
    )


def hash_token(text: str) -> bytes:
    """Return the hash that a token is looked up by."""
    return hashlib.sha256(text.encode("ascii")).digest()


def is_well_formed(text: str) -> bool:
    """Return True if a text has the form of a token; nothing else is worth a look-up."""
    return _TEXT.fullmatch(text) is not None
