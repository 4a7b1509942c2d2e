"""Enrolment: from an enrolment token to a credential, and from its key to access tokens.

An agent proves its private key by a signature: over the hash of the enrolment token when it
enrols, later over a challenge of the server's. The clock of the agent plays no part.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from arc_protocol.enrolment import (
    ENROL_TOKEN_PREFIX,
    KEY_BYTES,
    SIGNATURE_BYTES,
    AccessTokenRequest,
    AccessTokenResponse,
    Challenge,
    CredentialInfo,
    EnrolRequest,
    NewKeyRequest,
    fingerprint,
    from_text,
    key_id,
    to_sign,
)
from arc_protocol.errors import InvalidCommand, Unauthorized
from arc_protocol.messages.base import CommandTarget
from arc_runtime.startup.late_module import late_module
from arc_server.auth.access import CHALLENGE_SECONDS, AccessTokens
from arc_server.auth.tokens import SECRET_BYTES, hash_token
from arc_server.ports.clock import Clock
from arc_server.ports.credentials import CredentialStore
from arc_server.ports.records import AgentKey, EnrolToken, KnownKey, NewCredential

if TYPE_CHECKING:
    from nacl import exceptions, signing
else:
    exceptions = late_module("nacl.exceptions")
    signing = late_module("nacl.signing")

log = structlog.get_logger(__name__)

ROTATE_AT: Final = 2 / 3
"""The share of a key's life at which it is rotated: an agent may be off for the rest of it."""
_TEXT: Final = re.compile(ENROL_TOKEN_PREFIX + r"[A-Za-z0-9_-]{43}", re.ASCII)


class NewEnrolToken(msgspec.Struct, frozen=True, kw_only=True):
    """A new enrolment token. `text` is shown once and stored nowhere."""

    text: str
    stored: EnrolToken


class EnrolmentLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of enrolment; the configuration keys of section `enrolment` have these names."""

    access_seconds: float
    key_seconds: float
    key_overlap_seconds: float


def new_enrol_token(
    deployment_id: str,
    uses: int,
    expires_in: timedelta,
    now: datetime,
    target: CommandTarget | None = None,
) -> NewEnrolToken:
    """Make an enrolment token, `arc_enrol_<43 characters>`."""
    text = f"{ENROL_TOKEN_PREFIX}{secrets.token_urlsafe(SECRET_BYTES)}"
    return NewEnrolToken(
        text=text,
        stored=EnrolToken(
            token_hash=hash_token(text),
            token_id=f"enr_{secrets.token_hex(6)}",
            deployment_id=deployment_id,
            uses=uses,
            created_at=now,
            expires_at=now + expires_in,
            target=target,
        ),
    )


class Enrolment:
    """The service of enrolment."""

    def __init__(
        self, store: CredentialStore, access: AccessTokens, clock: Clock, limits: EnrolmentLimits
    ) -> None:
        self._store = store
        self._access = access
        self._clock = clock
        self._limits = limits

    async def find(self, authorization: str | None) -> EnrolToken | None:
        """Return the enrolment token of a header, good or not; None if it is none of ours."""
        try:
            token = _bearer(authorization)
        except Unauthorized:
            return None
        return await self._store.find_enrol_token(hash_token(token))

    async def enrol(self, authorization: str | None, request: EnrolRequest) -> CredentialInfo:
        """Enrol an agent with an enrolment token. A repeat with the key gets the first answer.

        Raises Unauthorized, Forbidden, Conflict (`CredentialStore.enrol`), InvalidCommand.
        """
        token = _bearer(authorization)
        public_key = _bytes("publicKey", request.public_key, KEY_BYTES)
        signed = to_sign("enrol", fingerprint(token), request.public_key)
        _verify(public_key, signed, _bytes("signature", request.signature, SIGNATURE_BYTES))
        known = await self._store.enrol(
            hash_token(token),
            NewCredential(
                credential_id=f"cred_{secrets.token_hex(8)}",
                key_id=key_id(public_key),
                public_key=public_key,
                hostname=request.hostname,
                deployment_id=request.deployment_id,
                target=request.target,
            ),
            self._clock.now(),
        )
        log.info(
            "credential.enrolled",
            credential_id=known.credential.credential_id,
            deployment_id=known.credential.deployment_id,
            enrol_token_id=known.credential.enrol_token_id,
            hostname=known.credential.hostname,
        )
        return _info(known)

    def challenge(self) -> Challenge:
        """Return a fresh challenge, to be signed."""
        return Challenge(
            challenge=self._access.challenge(), expires_in_seconds=float(CHALLENGE_SECONDS)
        )

    async def access_token(
        self, request: AccessTokenRequest, count: Callable[[], None] = lambda: None
    ) -> AccessTokenResponse:
        """Return a fresh access token. `count` is called after the signature, and may refuse.

        Raises Unauthorized, InvalidCommand.
        """
        self._access.check_challenge(request.challenge)
        signed = to_sign("token", request.key_id, request.challenge)
        known = await self._signer(request.key_id, signed, request.signature)
        count()
        self._access.use_challenge(request.challenge)
        now = self._clock.now()
        if known.key.used_at is None:
            older_end_at = now + timedelta(seconds=self._limits.key_overlap_seconds)
            await self._store.use_key(request.key_id, now, older_end_at)
        age = (now - known.key.made_at).total_seconds()
        credential = known.credential
        return AccessTokenResponse(
            token=self._access.mint(credential.credential_id, self._limits.access_seconds),
            expires_in_seconds=self._limits.access_seconds,
            credential_id=credential.credential_id,
            deployment_id=credential.deployment_id,
            rotate_key=age >= self._limits.key_seconds * ROTATE_AT,
        )

    async def new_key(
        self, request: NewKeyRequest, count: Callable[[], None] = lambda: None
    ) -> CredentialInfo:
        """Add a key to a credential. The key that signs ends some time after the first use of the
        new one. A repeat gets the first answer. `count` is called once the signature is good, and
        may refuse.

        Raises Unauthorized, Conflict, InvalidCommand.
        """
        self._access.check_challenge(request.challenge)
        public_key = _bytes("publicKey", request.public_key, KEY_BYTES)
        signed = to_sign("key", request.key_id, request.challenge, request.public_key)
        known = await self._signer(request.key_id, signed, request.signature)
        count()
        _verify(public_key, signed, _bytes("newSignature", request.new_signature, SIGNATURE_BYTES))
        self._access.use_challenge(request.challenge)
        now = self._clock.now()
        added = await self._store.add_key(
            AgentKey(
                key_id=key_id(public_key),
                credential_id=known.key.credential_id,
                public_key=public_key,
                made_at=now,
            ),
            request.key_id,
            now,
        )
        log.info(
            "credential.new_key",
            credential_id=added.key.credential_id,
            key_id=added.key.key_id,
        )
        return _info(added)

    async def _signer(self, named: str, signed: bytes, signature: str) -> KnownKey:
        """Return the key that signed. Raises Unauthorized unless it is good, InvalidCommand.

        Only an agent that has the key learns that it was revoked.
        """
        data = _bytes("signature", signature, SIGNATURE_BYTES)
        known = await self._store.find_key(named)
        if known is None:
            raise Unauthorized("this key is not known", reason="unknown")
        _verify(known.key.public_key, signed, data)
        if known.credential.revoked_at is not None:
            raise Unauthorized("this credential was revoked", reason="revoked")
        if not known.is_good(self._clock.now()):
            raise Unauthorized("this key has ended: a newer one took its place", reason="ended")
        return known


def _info(known: KnownKey) -> CredentialInfo:
    return CredentialInfo(
        credential_id=known.credential.credential_id,
        deployment_id=known.credential.deployment_id,
        key_id=known.key.key_id,
    )


def _bearer(authorization: str | None) -> str:
    """Return the enrolment token of a header. Raises Unauthorized."""
    kind, _, text = (authorization or "").partition(" ")
    text = text.strip(" ")
    if kind.lower() != "bearer" or _TEXT.fullmatch(text) is None:
        raise Unauthorized("an enrolment token is needed as the bearer token")
    return text


def _bytes(field: str, text: str, size: int) -> bytes:
    """Decode a key or a signature. Raises InvalidCommand naming the field."""
    try:
        return from_text(text, size)
    except ValueError:
        raise InvalidCommand(f"{field}: must be base64 of {size} bytes", field=field) from None


def _verify(public_key: bytes, signed: bytes, signature: bytes) -> None:
    """Raise Unauthorized unless the key made the signature."""
    try:
        signing.VerifyKey(public_key).verify(signed, signature)
    except exceptions.BadSignatureError:
        raise Unauthorized("the signature is wrong") from None
