"""Signatures of commands are JWS compact (RFC 7515), Ed25519 (RFC 8037), typed (RFC 8725).

    base64url(header) . base64url(claims) . base64url(signature)

The claims are the canonical form: the host verifies the bytes as they came, and then compares every
claim with the envelope; nothing is encoded again for a comparison. Everything else is refused:
other header fields (`crit`, `jwk`, `b64` …), unknown claims (they might restrict), a name that
stands twice, base64 with padding, whitespace or loose bits.

Pure: arc_client.bodies.signing makes the signature, arc_agent.guard.signatures checks it.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

import msgspec

from arc_protocol.messages.base import SIGNATURE_CHARS, Name, Size, Timestamp

TYPE: Final = "arc-command+jws"
"""`typ`: a signature of anything else by the key is not one of a command."""
SEALED_ERROR: Final = "SEALED_ERROR"
"""The code of an error whose `details` are the real ErrorResponse, sealed, in base64."""
NONCE_BYTES: Final = 16
KEY_ID_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"
"""The name of a key: it stands in policies, logs and file names."""

KeyId = Annotated[str, msgspec.Meta(pattern=rf"\A{KEY_ID_PATTERN}\Z")]
_Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Nonce = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{22}\Z")]
_X25519 = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{43}\Z")]

_WORD: Final = re.compile(r"[A-Za-z0-9_-]+")

T = TypeVar("T")


class MalformedSignature(Exception):
    """The text is not a signature of a command. The message says why, in a few words."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A part of a signature, as JSON."""


class Header(_Part, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """The protected header, and all its fields."""

    alg: Literal["EdDSA"]
    kid: KeyId
    typ: Literal["arc-command+jws"]


class Sealing(_Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The params are sealed for a host, and the result is to be sealed for the sender."""

    to: KeyId
    """The name of the host's key."""
    reply_to: _X25519
    """The sender's public key, base64url."""


class Claims(_Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The signed claims. None of them is a float."""

    deployment: Name
    command: Name
    params_sha256: _Sha256
    """The digest of the params as they cross the wire."""
    params_bytes: Size
    issued_at: Timestamp
    """By the sender's clock."""
    nonce: _Nonce
    """Tells this signature from all others of the key."""
    target: Name | None = None
    """The resource id; absent: the deployment's default target."""
    deadline: Timestamp | None = None
    sealed: Sealing | None = None


class SignatureParts(NamedTuple):
    """The parts of a signature. None of them is verified yet."""

    header: Header
    signed: bytes
    """The signed bytes, as they came."""
    signature: bytes
    claims: bytes
    """JSON, for `read_claims` once the signature is verified."""


def signing_input(kid: str, claims: Claims) -> bytes:
    """Return the bytes to sign."""
    header = Header(alg="EdDSA", kid=kid, typ=TYPE)
    return b".".join(
        encode_base64url(msgspec.json.encode(part, order="sorted")).encode("ascii")
        for part in (header, claims)
    )


def compact(signed: bytes, signature: bytes) -> str:
    """Return the signature as a create carries it."""
    return f"{signed.decode('ascii')}.{encode_base64url(signature)}"


def take_apart(text: str) -> SignatureParts:
    """Return the parts of a signature. Raises MalformedSignature."""
    if len(text) > SIGNATURE_CHARS:
        raise MalformedSignature("it is too long")
    words = text.split(".")
    if len(words) != 3:
        raise MalformedSignature("it has not three parts")
    try:
        header, claims, signature = map(decode_base64url, words)
    except ValueError:
        raise MalformedSignature("a part is not base64url") from None
    if len(signature) != 64:
        raise MalformedSignature("it has not the length of an Ed25519 signature")
    signed = text.rpartition(".")[0].encode("ascii")
    return SignatureParts(_read(header, Header, "header"), signed, signature, claims)


def read_claims(data: bytes) -> Claims:
    """Return the claims of a verified signature. Raises MalformedSignature."""
    return _read(data, Claims, "claims")


def encode_base64url(data: bytes) -> str:
    """Return bytes as base64url (RFC 4648 section 5), without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode_base64url(text: str) -> bytes:
    """Return the bytes of the one spelling that `encode_base64url` gives. Raises ValueError."""
    if not _WORD.fullmatch(text) or len(text) % 4 == 1:
        raise ValueError("not base64url")
    data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encode_base64url(data) != text:
        raise ValueError("not canonical base64url")
    return data


def _read(data: bytes, kind: type[T], what: str) -> T:
    """Return JSON as a part. Raises MalformedSignature."""
    try:
        text = data.decode("utf-8")
        json.loads(text, object_pairs_hook=_unique, parse_float=_no_float)
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise MalformedSignature(f"its {what}: {str(error)[:200]}") from None
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, _Refused) else "not JSON"
        raise MalformedSignature(f"its {what}: {reason}") from None


class _Refused(ValueError):
    """JSON that parsers read differently."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object. Raises for a name that stands twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Refused("a name stands twice")
    return found


def _no_float(_text: str) -> Any:
    """Raise: a number with a fraction is refused."""
    raise _Refused("a number with a fraction")
