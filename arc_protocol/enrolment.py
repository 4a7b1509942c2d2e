"""Enrolment gives an agent a credential of its own: its messages, and the bytes that are signed.

The agent makes an Ed25519 key pair; the server knows the public part. An enrolment token turns a
key into a credential. A signature over a challenge of the server turns the credential into a
short-lived access token. Signatures by the old and the new key replace the key. An extension:
docs/protocol.md, Enrolment.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from typing import Annotated, Final, Literal

import msgspec

from arc_protocol.messages.base import CommandTarget, Label, Message, Name
from arc_protocol.messages.bodies import decode_base64

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
ENROL_TOKEN_PREFIX: Final = "arc_enrol_"  # noqa: S105  # the start of a token, and no token
_DOMAIN: Final = "arc.agent.v1"
"""The start of all signed bytes: a signature means nothing in another protocol."""
_KEY_ID_CHARS: Final = 32

Purpose = Literal["enrol", "token", "key"]
Base64Text = Annotated[str, msgspec.Meta(max_length=128)]
"""A key or a signature, base64 of the standard alphabet with padding."""
KeyId = Annotated[str, msgspec.Meta(max_length=64, pattern=r"\Akey_[0-9a-f]{32}\Z")]
ChallengeText = Annotated[str, msgspec.Meta(max_length=256, pattern=r"\A[!-~]*\Z")]


class EnrolRequest(Message, frozen=True, kw_only=True):
    """POST /agents/enrol, with an enrolment token as its bearer token."""

    public_key: Base64Text
    signature: Base64Text
    """By that key, over `("enrol", SHA-256 of the enrolment token in hex, publicKey)`."""
    hostname: Label = ""
    """The name in an operator's lists. It is no identity: hosts may be cloned."""
    deployment_id: Name | None = None
    """The agent's configured deployment. A mismatch with the token is refused, and costs no use."""
    target: CommandTarget | None = None
    """The agent's configured target. The credential is bound to it. An extension."""


class CredentialInfo(Message, frozen=True, kw_only=True):
    """The answer to an enrolment and to a new key."""

    credential_id: str
    deployment_id: str
    key_id: str


class Challenge(Message, frozen=True, kw_only=True):
    """POST /agents/challenges: fresh bytes to sign, so that no clock matters."""

    challenge: str
    expires_in_seconds: float


class AccessTokenRequest(Message, frozen=True, kw_only=True):
    """POST /agents/tokens. `signature` is over `("token", keyId, challenge)`."""

    key_id: KeyId
    challenge: ChallengeText
    signature: Base64Text


class AccessTokenResponse(Message, frozen=True, kw_only=True):
    """A short-lived bearer token; the agent counts its life from the moment before the request."""

    token: str
    expires_in_seconds: float
    credential_id: str
    deployment_id: str
    rotate_key: bool = False
    """True: the key is old, and the agent must replace it. The server's clock decides."""


class NewKeyRequest(Message, frozen=True, kw_only=True):
    """POST /agents/keys. Both signatures are over `("key", keyId, challenge, publicKey)`."""

    key_id: KeyId
    """The present key."""
    challenge: ChallengeText
    public_key: Base64Text
    """The new key."""
    signature: Base64Text
    """By the present key."""
    new_signature: Base64Text
    """By the new key: it proves that the agent holds it."""


def key_id(public_key: bytes) -> str:
    """Return the id of a key; agent and server derive it alike."""
    return f"key_{hashlib.sha256(public_key).hexdigest()[:_KEY_ID_CHARS]}"


def to_sign(purpose: Purpose, *parts: str) -> bytes:
    """Return the bytes to sign: each part follows its length, so that no byte can change parts."""
    return "".join(f"{len(part)}:{part}" for part in (_DOMAIN, purpose, *parts)).encode("ascii")


def fingerprint(enrol_token: str) -> str:
    """Return an enrolment token as a part of signed bytes."""
    return hashlib.sha256(enrol_token.encode("ascii")).hexdigest()


def to_text(data: bytes) -> str:
    """Return a key or a signature as text for the wire."""
    return b64encode(data).decode("ascii")


def from_text(text: str, size: int) -> bytes:
    """Return a key or a signature of `size` bytes. Raises ValueError."""
    data = decode_base64(text)
    if len(data) != size:
        raise ValueError(f"not {size} bytes")
    return data
