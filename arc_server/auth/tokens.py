"""Bearer tokens: a name that may be shown, and 256 bits of a CSPRNG.

`arc_<scope>_<id>_<secret><checksum>`. The checksum tells a text that was cut or mistyped from a
token before anything is looked up; it is no protection. Only the SHA-256 of a token is stored. A
token cannot be guessed, so a slow hash would only add load. A client takes a token as opaque text.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec

from arc_protocol.messages.base import CommandTarget
from arc_server.ports.records import BearerToken, TokenSecret

SECRET_BYTES: Final = 32
ID_PREFIX: Final = "tok_"
_ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET_CHARS: Final = 43
"""Of 62 letters each: 256 bits."""
_CHECKSUM_CHARS: Final = 6
"""A CRC-32 in base 62."""
_TEXT: Final = re.compile(
    r"arc_(?:admin|operator|sender|agent|viewer)_[0-9a-f]{12}_([0-9A-Za-z]{43})([0-9A-Za-z]{6})",
    re.ASCII,
)
_FORMER: Final = re.compile(r"arc_(?:admin|sender|agent)_[A-Za-z0-9_-]{43}", re.ASCII)
"""The form of earlier releases, without a checksum. These tokens stay good."""


class Scope(StrEnum):
    """The rights of a token."""

    ADMIN = "admin"
    """May do everything, including repairs."""
    OPERATOR = "operator"
    """May see everything, cancel commands and run them again."""
    SENDER = "sender"
    """May create commands and read their results."""
    AGENT = "agent"
    """May lease commands and respond to them."""
    VIEWER = "viewer"
    """May see commands and agents, and no params."""


class NewToken(msgspec.Struct, frozen=True, kw_only=True):
    """A new token. `text` is shown once and stored nowhere."""

    text: str
    stored: BearerToken
    secret: TokenSecret


def new_token(
    scope: Scope,
    deployments: Sequence[str] | None,
    now: datetime,
    *,
    commands: Sequence[str] | None = None,
    target: CommandTarget | None = None,
    agent_id: str | None = None,
    name: str = "",
    created_by: str = "",
    expires_at: datetime | None = None,
) -> NewToken:
    """Make a token that is bound to patterns of deployments, or to none."""
    token_id = f"{ID_PREFIX}{secrets.token_hex(6)}"
    text, secret = new_secret(scope, token_id, now)
    return NewToken(
        text=text,
        secret=secret,
        stored=BearerToken(
            token_id=token_id,
            scope=scope.value,
            name=name,
            created_at=now,
            created_by=created_by,
            deployments=None if deployments is None else tuple(deployments),
            commands=None if commands is None else tuple(commands),
            target=target,
            agent_id=agent_id,
            expires_at=expires_at,
        ),
    )


def new_secret(scope: str, token_id: str, now: datetime) -> tuple[str, TokenSecret]:
    """Make a secret for a token, and return the text of the token with it."""
    chosen = "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_CHARS))
    text = f"arc_{scope}_{token_id.removeprefix(ID_PREFIX)}_{chosen}"
    text += checksum(text)
    secret = TokenSecret(token_hash=hash_token(text), token_id=token_id, created_at=now)
    return text, secret


def checksum(text: str) -> str:
    """Return the checksum that ends a token."""
    number = zlib.crc32(text.encode("ascii"))
    digits: list[str] = []
    for _ in range(_CHECKSUM_CHARS):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def hash_token(text: str) -> bytes:
    """Return the hash that a token is looked up by."""
    return hashlib.sha256(text.encode("ascii")).digest()


def is_well_formed(text: str) -> bool:
    """Return True if a text has the form of a token; nothing else is worth a look-up."""
    found = _TEXT.fullmatch(text)
    if found is None:
        return _FORMER.fullmatch(text) is not None
    return checksum(text[:-_CHECKSUM_CHARS]) == found[2]
