"""The ports for tokens, and for credentials of agents that enrolled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from arc_server.ports.records import (
    AgentKey,
    BearerToken,
    CommandRecord,
    Credential,
    EnrolToken,
    KnownKey,
    KnownSecret,
    NewCredential,
    TokenSecret,
)


class TokenStore(Protocol):
    """Bearer tokens, by the SHA-256 of their text."""

    async def put_token(self, token: BearerToken, secret: TokenSecret) -> None:
        """Store a new token and its first secret.

        The deployments that it is bound to by name are registered, and its target in them.
        """
        ...

    async def find_token(self, token_hash: bytes) -> KnownSecret | None:
        """Return a secret and its token, good or not; None if it is unknown."""
        ...

    async def rotate_token(self, secret: TokenSecret, older_end_at: datetime) -> BearerToken | None:
        """Add a secret to a token; older ones end at `older_end_at`, ended ones go.

        Return the token, None when there is no such token. A revoked one gets no secret.
        """
        ...

    async def use_tokens(self, used: Mapping[str, datetime]) -> None:
        """Record when tokens were last used. Time never moves back."""
        ...

    async def list_tokens(self) -> Sequence[BearerToken]:
        """Return all tokens, oldest first."""
        ...

    async def revoke_token(self, token_id: str, now: datetime) -> bool:
        """Revoke a token. Return False when there is no such token."""
        ...


class RevocationStore(TokenStore, Protocol):
    """Revocations, and the leases that end with them."""

    async def revocations(self) -> int:
        """Return how often a token or a credential was revoked or rotated, by any process."""
        ...

    async def revoked_ids(self) -> frozenset[str]:
        """Return the ids of all tokens and credentials that were revoked."""
        ...

    async def requeue_revoked(self, now: datetime, limit: int) -> Sequence[CommandRecord]:
        """Take leases back that a revoked token or credential holds, as if they had lapsed.

        At most `limit`. Return the commands as they stand now.
        """
        ...


class CredentialStore(RevocationStore, Protocol):
    """Enrolment tokens, credentials and their keys."""

    async def put_enrol_token(self, token: EnrolToken) -> None:
        """Store a new enrolment token. Its deployment and its target are registered."""
        ...

    async def find_enrol_token(self, token_hash: bytes) -> EnrolToken | None:
        """Return an enrolment token, good or not; None if it is unknown."""
        ...

    async def list_enrol_tokens(self) -> Sequence[EnrolToken]:
        """Return all enrolment tokens, oldest first."""
        ...

    async def revoke_enrol_token(self, token_id: str, now: datetime) -> bool:
        """Revoke an enrolment token; agents that it enrolled stay.

        Return False when there is no such token.
        """
        ...

    async def enrol(self, token_hash: bytes, new: NewCredential, now: datetime) -> KnownKey:
        """Use an enrolment token once: store a credential and its first key.

        The credential is bound to the target of the token, or else to the one that the agent
        names, which is registered.

        A key that this token enrolled before is returned as it stands and costs no use, also when
        the token is used up or has expired since: the first answer may have been lost.

        Raises Unauthorized (no such token, revoked, expired, used up, or its credential was
        revoked), Forbidden (the agent is configured for another deployment or target),
        Conflict (the key is known from elsewhere); nothing is stored then.
        """
        ...

    async def find_key(self, key_id: str) -> KnownKey | None:
        """Return a key and its credential, None if it is unknown."""
        ...

    async def add_key(self, new: AgentKey, signed_by: str, now: datetime) -> KnownKey:
        """Add a key to a credential, signed by its key `signed_by`. A key that is there stays.

        Keys of the credential that were never used are removed. Raises Unauthorized (revoked, or
        `signed_by` is no good key of it), Conflict (the key is another credential's).
        """
        ...

    async def use_key(self, key_id: str, now: datetime, older_end_at: datetime) -> None:
        """Record the first use of a key: older keys end at `older_end_at`, ended ones go."""
        ...

    async def find_credential(self, credential_id: str) -> Credential | None:
        """Return a credential, revoked or not; None if it is unknown."""
        ...

    async def list_credentials(self) -> Sequence[Credential]:
        """Return all credentials, oldest first."""
        ...

    async def revoke_credential(self, credential_id: str, now: datetime) -> bool:
        """Revoke a credential; the first revocation counts. Return False when there is none."""
        ...
