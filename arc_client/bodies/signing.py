"""Signing makes the signatures of arc_protocol.signatures with a key of the sender's."""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from arc_client.bodies.params import Body
from arc_client.errors import ConfigurationError
from arc_protocol.messages.commands import CreateCommandRequest
from arc_protocol.signatures import (
    NONCE_BYTES,
    Claims,
    Sealing,
    compact,
    encode_base64url,
    signing_input,
)
from arc_runtime.key_files import SIGNING, KeyFileError, PrivateKey, read_private
from arc_runtime.startup.late_module import late_module

if TYPE_CHECKING:
    from nacl import bindings
else:
    bindings = late_module("nacl.bindings")


def read_signing_key(file: str | Path) -> PrivateKey:
    """Return a sender's private key. Raises ConfigurationError."""
    try:
        return read_private(Path(file), SIGNING)
    except KeyFileError as error:
        raise ConfigurationError(f"the signing key: {error}") from error


def new_nonce() -> str:
    """Return the nonce that tells one signature of a key from all others."""
    return encode_base64url(secrets.token_bytes(NONCE_BYTES))


async def sign(
    key: PrivateKey,
    request: CreateCommandRequest,
    body: Body,
    *,
    nonce: str,
    sealed: Sealing | None = None,
    now: datetime | None = None,
) -> str:
    """Return the signature of a create whose params are `body`. Raises InvalidParams.

    Sign each command once: a retry with another signature would be another command. Reads the
    body, which is then sent from its beginning.
    """
    claims = Claims(
        deployment=request.deployment_id,
        target=request.target_resource_id,
        command=request.command,
        params_sha256=await _digest(body),
        params_bytes=body.size,
        deadline=request.deadline,
        issued_at=now or datetime.now(UTC),
        nonce=nonce,
        sealed=sealed,
    )
    signed = signing_input(key.name, claims)
    _, secret = bindings.crypto_sign_seed_keypair(key.secret)
    return compact(signed, bindings.crypto_sign(signed, secret)[: bindings.crypto_sign_BYTES])


def public_for_replies(key: PrivateKey) -> str:
    """Return the key that hosts seal results for: X25519, of the signing key, base64url."""
    return encode_base64url(bindings.crypto_sign_ed25519_pk_to_curve25519(key.public().data))


def secret_for_replies(key: PrivateKey) -> bytes:
    """Return the key that opens sealed results: X25519, of the signing key."""
    _, secret = bindings.crypto_sign_seed_keypair(key.secret)
    return bindings.crypto_sign_ed25519_sk_to_curve25519(secret)


async def _digest(body: Body) -> str:
    """Return the SHA-256 of a body. Raises InvalidParams."""
    digest = sha256()
    async for chunk in body.chunks():
        if body.is_in_memory:
            digest.update(chunk)
        else:
            await asyncio.to_thread(digest.update, chunk)
    return digest.hexdigest()
