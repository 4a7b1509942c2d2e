"""Enrolment: how an agent gets a credential of its own, as messages and as the bytes that it signs.

The agent makes an Ed25519 key pair; the server knows the public part. An enrol token turns a key
into a credential; a signature over a challenge of the server turns it into a short-lived access
token; a signature by the old key and the new one puts a new key in its place. An addition of ours
(protocol.md, part 2).
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from typing import Annotated, Final, Literal

import msgspec

from arc_protocol.messages.base import Label, Message, Name
from arc_protocol.messages.bodies import decode_base64

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
ENROL_TOKEN_PREFIX: Final = "arc_enrol_"  # noqa: S105  # how one begins
_DOMAIN: Final = "arc.agent.v1"
"""Stands before all that is signed: no signature means anything elsewhere."""
_KEY_ID_CHARS: Final = 32

Purpose = Literal["enrol", "token", "key"]
Base64Text = Annotated[str, msgspec.Meta(max_length=128)]
"""A key or a signature, base64 of the standard alphabet with padding."""
KeyId = Annotated[str, msgspec.Meta(max_length=64, pattern=r"\Akey_[0-9a-f]{32}\Z")]
ChallengeText = Annotated[str, msgspec.Meta(max_length=256, pattern=r"\A[!-~]*\Z")]


class EnrolRequest(Message, frozen=True, kw_only=True):
    """POST /agents/enrol, with an enrol token as its bearer token."""

    public_key: Base64Text
    signature: Base64Text
    """By that key, over `("enrol", SHA-256 of the enrol token in hex, publicKey)`."""
    hostname: Label = ""
    """What an operator sees in lists. No identity: hosts may be cloned."""
    deployment_id: Name | None = None
    """What the agent is configured for; another than the token's is refused, at no use's cost."""


class CredentialInfo(Message, frozen=True, kw_only=True):
    """The answer to an enrolment and to a new key."""

    credential_id: str
    deployment_id: str
    key_id: str


class Challenge(Message, frozen=True, kw_only=True):
    """POST /agents/challenges: something fresh to sign, so that no clock matters."""

    challenge: str
    expires_in_seconds: float


class AccessTokenRequest(Message, frozen=True, kw_only=True):
    """POST /agents/tokens. `signature` is over `("token", keyId, challenge)`."""

    key_id: KeyId
    challenge: ChallengeText
    signature: Base64Text


class AccessTokenResponse(Message, frozen=True, kw_only=True):
    """A bearer token for a while; counted by the agent from the moment before it asked."""

    token: str
    expires_in_seconds: float
    credential_id: str
    deployment_id: str
    rotate_key: bool = False
    """The key is old: put a new one in its place. The server's clock decides."""


class NewKeyRequest(Message, frozen=True, kw_only=True):
    """POST /agents/keys. Both signatures are over `("key", keyId, challenge, publicKey)`."""

    key_id: KeyId
    """The key that is there."""
    challenge: ChallengeText
    public_key: Base64Text
    """The key that is to take its place."""
    signature: Base64Text
    """By the key that is there."""
    new_signature: Base64Text
    """By the new one: whoever sends it has it."""


def key_id(public_key: bytes) -> str:
    """The name of a key, the same on both sides."""
    return f"key_{hashlib.sha256(public_key).hexdigest()[:_KEY_ID_CHARS]}"


def to_sign(purpose: Purpose, *parts: str) -> bytes:
    """The bytes that are signed: each part stands behind its length, nothing can be shifted."""
    return "".join(f"{len(part)}:{part}" for part in (_DOMAIN, purpose, *parts)).encode("ascii")


def fingerprint(enrol_token: str) -> str:
    """An enrol token as it goes into what is signed."""
    return hashlib.sha256(enrol_token.encode("ascii")).hexdigest()


def to_text(data: bytes) -> str:
    """A key or a signature for the wire."""
    return b64encode(data).decode("ascii")


def from_text(text: str, size: int) -> bytes:
    """A key or a signature of that many bytes. Raises ValueError."""
    data = decode_base64(text)
    if len(data) != size:
        raise ValueError(f"not {size} bytes")
    return data
