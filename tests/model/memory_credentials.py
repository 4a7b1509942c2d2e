"""The model's part that keeps the agents' credentials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from arc_protocol.errors import Conflict, StoreUnavailable
from arc_protocol.messages.base import CommandTarget
from arc_server.ports.records import (
    AgentKey,
    BearerToken,
    Credential,
    EnrolToken,
    KnownKey,
    KnownSecret,
    NewCredential,
    TokenSecret,
)
from arc_server.store.operations.credentials import check_enrolment, check_new_key


class MemoryCredentials:
    """CredentialStore without a database; a part of MemoryStore."""

    def __init__(self) -> None:
        self._enrol_tokens: dict[bytes, EnrolToken] = {}
        self._credentials: dict[str, Credential] = {}
        self._agent_keys: dict[str, AgentKey] = {}
        """By key id, in the order in which they were made."""
        self._tokens: dict[str, BearerToken] = {}
        self._secrets: dict[bytes, TokenSecret] = {}
        self._revocations = 0
        self._is_closed = False

    def _named_by_operator(self, deployment_id: str, target: CommandTarget | None) -> None:
        """Register what a token or an enrolment names."""
        raise NotImplementedError

    async def put_token(self, token: BearerToken, secret: TokenSecret) -> None:
        """See TokenStore."""
        self._check_open()
        if secret.token_hash in self._secrets or token.token_id in self._tokens:
            raise StoreUnavailable("there is such a token")
        self._tokens[token.token_id] = token
        self._secrets[secret.token_hash] = secret
        for pattern in token.deployments or ():
            if "*" not in pattern:
                self._named_by_operator(pattern, token.target)

    async def find_token(self, token_hash: bytes) -> KnownSecret | None:
        """See TokenStore."""
        self._check_open()
        secret = self._secrets.get(token_hash)
        if secret is None:
            return None
        return KnownSecret(secret=secret, token=self._tokens[secret.token_id])

    async def rotate_token(self, secret: TokenSecret, older_end_at: datetime) -> BearerToken | None:
        """See TokenStore."""
        self._check_open()
        token = self._tokens.get(secret.token_id)
        if token is None or token.revoked_at is not None:
            return token
        for older in list(self._secrets.values()):
            if older.token_id != secret.token_id:
                continue
            ends_at = min(older.ends_at or older_end_at, older_end_at)
            self._secrets[older.token_hash] = msgspec.structs.replace(older, ends_at=ends_at)
            if ends_at <= secret.created_at:
                del self._secrets[older.token_hash]
        self._secrets[secret.token_hash] = secret
        self._revocations += 1
        return token

    async def use_tokens(self, used: Mapping[str, datetime]) -> None:
        """See TokenStore."""
        self._check_open()
        for token_id, at in used.items():
            token = self._tokens.get(token_id)
            if token is not None and (token.last_used_at is None or token.last_used_at < at):
                self._tokens[token_id] = msgspec.structs.replace(token, last_used_at=at)

    async def list_tokens(self) -> Sequence[BearerToken]:
        """See TokenStore."""
        self._check_open()
        return sorted(self._tokens.values(), key=lambda token: (token.created_at, token.token_id))

    async def revoke_token(self, token_id: str, now: datetime) -> bool:
        """See TokenStore."""
        self._check_open()
        token = self._tokens.get(token_id)
        if token is None:
            return False
        self._tokens[token_id] = msgspec.structs.replace(token, revoked_at=token.revoked_at or now)
        self._revocations += token.revoked_at is None
        return True

    async def revoked_ids(self) -> frozenset[str]:
        """See RevocationStore."""
        self._check_open()
        tokens = {name for name, each in self._tokens.items() if each.revoked_at}
        return frozenset(
            tokens | {name for name, each in self._credentials.items() if each.revoked_at}
        )

    async def find_enrol_token(self, token_hash: bytes) -> EnrolToken | None:
        """See CredentialStore."""
        self._check_open()
        return self._enrol_tokens.get(token_hash)

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreUnavailable("the store is closed")

    async def put_enrol_token(self, token: EnrolToken) -> None:
        """See CredentialStore."""
        self._check_open()
        if token.token_hash in self._enrol_tokens or any(
            each.token_id == token.token_id for each in self._enrol_tokens.values()
        ):
            raise StoreUnavailable("there is such a token")
        self._enrol_tokens[token.token_hash] = token
        self._named_by_operator(token.deployment_id, token.target)

    async def list_enrol_tokens(self) -> Sequence[EnrolToken]:
        """See CredentialStore."""
        self._check_open()
        return sorted(
            self._enrol_tokens.values(), key=lambda each: (each.created_at, each.token_id)
        )

    async def revoke_enrol_token(self, token_id: str, now: datetime) -> bool:
        """See CredentialStore."""
        self._check_open()
        for token in self._enrol_tokens.values():
            if token.token_id == token_id:
                self._enrol_tokens[token.token_hash] = msgspec.structs.replace(
                    token, revoked_at=token.revoked_at or now
                )
                return True
        return False

    async def enrol(self, token_hash: bytes, new: NewCredential, now: datetime) -> KnownKey:
        """See CredentialStore."""
        self._check_open()
        token, known = self._enrol_tokens.get(token_hash), self._known(new.key_id)
        check_enrolment(token, new, known, now)
        assert token is not None
        if known is not None:
            return known
        self._enrol_tokens[token_hash] = msgspec.structs.replace(token, used=token.used + 1)
        self._credentials[new.credential_id] = Credential(
            credential_id=new.credential_id,
            deployment_id=token.deployment_id,
            hostname=new.hostname,
            enrol_token_id=token.token_id,
            enrolled_at=now,
            target=token.target or new.target,
        )
        self._named_by_operator(token.deployment_id, token.target or new.target)
        self._agent_keys[new.key_id] = AgentKey(
            key_id=new.key_id,
            credential_id=new.credential_id,
            public_key=new.public_key,
            made_at=now,
        )
        return self._there(new.key_id)

    async def find_key(self, key_id: str) -> KnownKey | None:
        """See CredentialStore."""
        self._check_open()
        return self._known(key_id)

    async def add_key(self, new: AgentKey, signed_by: str, now: datetime) -> KnownKey:
        """See CredentialStore."""
        self._check_open()
        known = self._known(new.key_id)
        check_new_key(self._known(signed_by), known, new, now)
        if known is not None:
            return known
        for key in list(self._agent_keys.values()):
            is_its = key.credential_id == new.credential_id
            if is_its and key.used_at is None and key.key_id != signed_by:
                del self._agent_keys[key.key_id]
        self._agent_keys[new.key_id] = AgentKey(
            key_id=new.key_id,
            credential_id=new.credential_id,
            public_key=new.public_key,
            made_at=now,
        )
        return self._there(new.key_id)

    async def use_key(self, key_id: str, now: datetime, older_end_at: datetime) -> None:
        """See CredentialStore."""
        self._check_open()
        key = self._agent_keys.get(key_id)
        if key is None or key.used_at is not None:
            return
        self._agent_keys[key_id] = msgspec.structs.replace(key, used_at=now)
        names = list(self._agent_keys)
        for name in names[: names.index(key_id)]:
            older = self._agent_keys[name]
            if older.credential_id != key.credential_id:
                continue
            ends_at = min(older.ends_at or older_end_at, older_end_at)
            self._agent_keys[name] = msgspec.structs.replace(older, ends_at=ends_at)
            if ends_at <= now:
                del self._agent_keys[name]

    async def find_credential(self, credential_id: str) -> Credential | None:
        """See CredentialStore."""
        self._check_open()
        return self._credentials.get(credential_id)

    async def list_credentials(self) -> Sequence[Credential]:
        """See CredentialStore."""
        self._check_open()
        return sorted(
            self._credentials.values(), key=lambda each: (each.enrolled_at, each.credential_id)
        )

    async def revoke_credential(self, credential_id: str, now: datetime) -> bool:
        """See CredentialStore."""
        self._check_open()
        credential = self._credentials.get(credential_id)
        if credential is None:
            return False
        self._credentials[credential_id] = msgspec.structs.replace(
            credential, revoked_at=credential.revoked_at or now
        )
        self._revocations += credential.revoked_at is None
        return True

    async def purge_tokens(self, before: datetime, limit: int) -> int:
        """See RetentionStore. The model keeps no journal."""
        self._check_open()
        tokens = [
            token_id
            for token_id, token in self._tokens.items()
            if _is_before(token.revoked_at, before) or _is_before(token.expires_at, before)
        ]
        for token_id in tokens:
            del self._tokens[token_id]
            self._secrets = {
                digest: each for digest, each in self._secrets.items() if each.token_id != token_id
            }
        enrol_tokens = [
            digest
            for digest, token in self._enrol_tokens.items()
            if _is_before(token.revoked_at, before) or token.expires_at < before
        ]
        for digest in enrol_tokens:
            del self._enrol_tokens[digest]
        revoked = [
            name for name, each in self._credentials.items() if _is_before(each.revoked_at, before)
        ]
        for name in revoked:
            del self._credentials[name]
            self._agent_keys = {
                key_id: key for key_id, key in self._agent_keys.items() if key.credential_id != name
            }
        return len(tokens) + len(enrol_tokens) + len(revoked)

    def _check_no_credentials(self, deployment_id: str, now: datetime) -> None:
        """Raise Conflict if an agent of a deployment is enrolled, or may enrol."""
        if any(
            each.deployment_id == deployment_id and each.revoked_at is None
            for each in self._credentials.values()
        ):
            raise Conflict("a credential is good: revoke it first")
        if any(
            each.deployment_id == deployment_id
            and each.revoked_at is None
            and each.expires_at > now
            and each.used < each.uses
            for each in self._enrol_tokens.values()
        ):
            raise Conflict("an enrolment token is good: revoke it first")

    async def revocations(self) -> int:
        """See CredentialStore."""
        self._check_open()
        return self._revocations

    def _known(self, key_id: str) -> KnownKey | None:
        key = self._agent_keys.get(key_id)
        if key is None:
            return None
        return KnownKey(key=key, credential=self._credentials[key.credential_id])

    def _there(self, key_id: str) -> KnownKey:
        known = self._known(key_id)
        assert known is not None
        return known


def _is_before(moment: datetime | None, before: datetime) -> bool:
    return moment is not None and moment < before
