"""Credentials of agents as a store keeps them, and the part of its port that is about them.

The rules of CommandStore hold: a method is one transaction, durable before it returns;
`StoreUnavailable` may come out of any.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

import msgspec


class EnrolToken(msgspec.Struct, frozen=True, kw_only=True):
    """Leave to enrol some agents of one deployment. Only the SHA-256 of its text is stored."""

    token_hash: bytes
    token_id: str
    """Safe to show."""
    deployment_id: str
    uses: int
    """How many agents it enrols."""
    used: int = 0
    """How many it has enrolled."""
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that enrolled. It may do what a token of scope `agent`, bound to it, may do."""

    credential_id: str
    deployment_id: str
    hostname: str
    """What it called itself."""
    enrol_token_id: str
    enrolled_at: datetime
    revoked_at: datetime | None = None


class AgentKey(msgspec.Struct, frozen=True, kw_only=True):
    """A public key of a credential."""

    key_id: str
    credential_id: str
    public_key: bytes
    """Ed25519, 32 bytes."""
    made_at: datetime
    used_at: datetime | None = None
    """When it was first used."""
    ends_at: datetime | None = None
    """Set when a newer key was first used: it is good before that."""


class KnownKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key and whose it is."""

    key: AgentKey
    credential: Credential

    def is_good(self, now: datetime) -> bool:
        """Whether its signature counts."""
        has_ended = self.key.ends_at is not None and self.key.ends_at <= now
        return self.credential.revoked_at is None and not has_ended


class NewCredential(msgspec.Struct, frozen=True, kw_only=True):
    """What an enrolment stores."""

    credential_id: str
    key_id: str
    public_key: bytes
    hostname: str
    deployment_id: str | None = None
    """What the agent is configured for, if it says so."""


class CredentialStore(Protocol):
    """Enrol tokens, credentials and their keys."""

    async def put_enrol_token(self, token: EnrolToken) -> None: ...

    async def list_enrol_tokens(self) -> Sequence[EnrolToken]:
        """All of them, oldest first."""
        ...

    async def revoke_enrol_token(self, token_id: str, now: datetime) -> bool:
        """False when there is no such token. Agents that it enrolled stay."""
        ...

    async def enrol(self, token_hash: bytes, new: NewCredential, now: datetime) -> KnownKey:
        """Use an enrol token once: a credential and its first key.

        A key that this token enrolled before is answered as it stands and costs no use, also when
        the token is used up or has expired since: the first answer may have been lost.

        Raises Unauthorized (no such token, revoked, expired, used up, or its credential was
        revoked), Forbidden (the agent is configured for another deployment), Conflict (the key is
        known from elsewhere); nothing is stored then.
        """
        ...

    async def find_key(self, key_id: str) -> KnownKey | None: ...

    async def add_key(self, new: AgentKey, signed_by: str, now: datetime) -> KnownKey:
        """A new key for a credential, by leave of its key `signed_by`. Again: it stays as it is.

        Keys of the credential that were never used go. Raises Unauthorized (revoked, or
        `signed_by` is no good key of it), Conflict (the key is another's).
        """
        ...

    async def use_key(self, key_id: str, now: datetime, older_end_at: datetime) -> None:
        """A key was used for the first time: older ones end then; those that have ended go."""
        ...

    async def find_credential(self, credential_id: str) -> Credential | None: ...

    async def list_credentials(self) -> Sequence[Credential]:
        """All of them, oldest first."""
        ...

    async def revoke_credential(self, credential_id: str, now: datetime) -> bool:
        """False when there is no such credential. Revoked already, it stays so since then."""
        ...

    async def revocations(self) -> int:
        """How often a token or a credential was revoked; another process may have done it."""
        ...
