"""Tokens, enrolment tokens, credentials of agents and their keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from arc_protocol.errors import Conflict, Forbidden, Unauthorized
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
from arc_server.store.engine.ended_journal import EndedRecord, ended_in
from arc_server.store.engine.rows import (
    Row,
    micros,
    micros_or_none,
    moment,
    moment_or_none,
    target_of,
)
from arc_server.store.engine.session import StoreSession
from arc_server.store.operations import targets


def put_token(db: StoreSession, token: BearerToken, secret: TokenSecret) -> None:
    """Fulfil TokenStore.put_token."""
    db.change(
        "put_token",
        token_id=token.token_id,
        scope=token.scope,
        name=token.name,
        created_at=micros(token.created_at),
        created_by=token.created_by,
        deployments=_patterns_as_json(token.deployments),
        commands=_patterns_as_json(token.commands),
        **_target_columns(token.target),
        agent_id=token.agent_id,
        expires_at=micros_or_none(token.expires_at),
        revoked_at=micros_or_none(token.revoked_at),
        last_used_at=micros_or_none(token.last_used_at),
    )
    _put_secret(db, secret)
    # An operator who binds a token names a deployment, and perhaps a target of it: both are to be
    # there when the token is first used, also where nothing registers itself.
    for pattern in token.deployments or ():
        if "*" not in pattern:
            targets.register(db, pattern, token.target, micros(token.created_at))


def find_token(db: StoreSession, token_hash: bytes) -> KnownSecret | None:
    """Fulfil TokenStore.find_token."""
    row = db.row("find_token", token_hash=token_hash)
    if row is None:
        return None
    _, created_at, ends_at, *columns = row
    token = _token(columns)
    return KnownSecret(
        secret=TokenSecret(
            token_hash=token_hash,
            token_id=token.token_id,
            created_at=moment(created_at),
            ends_at=moment_or_none(ends_at),
        ),
        token=token,
    )


def rotate_token(
    db: StoreSession, secret: TokenSecret, older_end_at: datetime
) -> BearerToken | None:
    """Fulfil TokenStore.rotate_token."""
    row = db.row("token_by_id", token_id=secret.token_id)
    if row is None:
        return None
    token = _token(row)
    if token.revoked_at is None:
        named = {"token_id": secret.token_id}
        db.change("end_token_secrets", **named, ends_at=micros(older_end_at))
        db.change("drop_ended_token_secrets", **named, now=micros(secret.created_at))
        _put_secret(db, secret)
        db.change("count_revocation")  # a server that remembers an older secret looks again
    return token


def use_tokens(db: StoreSession, used: Mapping[str, datetime]) -> None:
    """Fulfil TokenStore.use_tokens."""
    for token_id, at in used.items():
        db.change("use_token", token_id=token_id, at=micros(at))


def list_tokens(db: StoreSession) -> Sequence[BearerToken]:
    """Fulfil TokenStore.list_tokens."""
    return list(map(_token, db.rows("list_tokens")))


def revoke_token(db: StoreSession, token_id: str, now: datetime) -> bool:
    """Fulfil TokenStore.revoke_token. The first revocation counts."""
    if not db.change("revoke_token", token_id=token_id, now=micros(now)):
        return db.row("token_by_id", token_id=token_id) is not None
    db.change("count_revocation")
    return True


def put_enrol_token(db: StoreSession, token: EnrolToken) -> None:
    """Fulfil CredentialStore.put_enrol_token."""
    db.change(
        "put_enrol_token",
        token_hash=token.token_hash,
        token_id=token.token_id,
        deployment_id=token.deployment_id,
        uses=token.uses,
        used=token.used,
        created_at=micros(token.created_at),
        expires_at=micros(token.expires_at),
        revoked_at=micros_or_none(token.revoked_at),
        **_target_columns(token.target),
    )
    targets.register(db, token.deployment_id, token.target, micros(token.created_at))


def find_enrol_token(db: StoreSession, token_hash: bytes) -> EnrolToken | None:
    """Fulfil CredentialStore.find_enrol_token."""
    row = db.row("find_enrol_token", token_hash=token_hash)
    return None if row is None else _enrol_token(row)


def list_enrol_tokens(db: StoreSession) -> Sequence[EnrolToken]:
    """Fulfil CredentialStore.list_enrol_tokens."""
    return list(map(_enrol_token, db.rows("list_enrol_tokens")))


def revoke_enrol_token(db: StoreSession, token_id: str, now: datetime) -> bool:
    """Fulfil CredentialStore.revoke_enrol_token."""
    return db.change("revoke_enrol_token", token_id=token_id, now=micros(now)) > 0


def enrol(db: StoreSession, token_hash: bytes, new: NewCredential, now: datetime) -> KnownKey:
    """Fulfil CredentialStore.enrol. The guarded UPDATE decides which agent gets the last use."""
    token = find_enrol_token(db, token_hash)
    known = find_key(db, new.key_id)
    check_enrolment(token, new, known, now)
    assert token is not None
    if known is not None:
        return known
    if not db.change("use_enrol_token", token_hash=token_hash, now=micros(now)):
        raise Unauthorized("this enrolment token is used up")
    db.change(
        "put_credential",
        credential_id=new.credential_id,
        deployment_id=token.deployment_id,
        hostname=new.hostname,
        enrol_token_id=token.token_id,
        now=micros(now),
        **_target_columns(token.target or new.target),
    )
    targets.register(db, token.deployment_id, token.target or new.target, micros(now))
    _put_key(db, new.key_id, new.credential_id, new.public_key, now)
    return _key(db, new.key_id)


def check_enrolment(
    token: EnrolToken | None, new: NewCredential, known: KnownKey | None, now: datetime
) -> None:
    """Raise as CredentialStore.enrol does, unless an enrolment is allowed."""
    if token is None or token.revoked_at is not None:
        raise Unauthorized("this enrolment token is not known, or was revoked")
    if new.deployment_id not in (None, token.deployment_id):
        raise Forbidden("this enrolment token is for another deployment")
    if token.target is not None and new.target not in (None, token.target):
        raise Forbidden("this enrolment token is for another target")
    if known is not None:
        if known.credential.enrol_token_id != token.token_id:
            raise Conflict("this key is enrolled already, by another token")
        if not known.is_good(now):
            raise Unauthorized("this credential was revoked", reason="revoked")
        return
    if token.expires_at <= now:
        raise Unauthorized("this enrolment token has expired")
    if token.used >= token.uses:
        raise Unauthorized("this enrolment token is used up")


def find_key(db: StoreSession, key_id: str) -> KnownKey | None:
    """Fulfil CredentialStore.find_key."""
    row = db.row("find_key", key_id=key_id)
    return None if row is None else _known_key(row)


def add_key(db: StoreSession, new: AgentKey, signed_by: str, now: datetime) -> KnownKey:
    """Fulfil CredentialStore.add_key."""
    known = find_key(db, new.key_id)
    check_new_key(find_key(db, signed_by), known, new, now)
    if known is not None:
        return known
    db.change("drop_unused_keys", credential_id=new.credential_id, signed_by=signed_by)
    _put_key(db, new.key_id, new.credential_id, new.public_key, now)
    return _key(db, new.key_id)


def check_new_key(
    signer: KnownKey | None, known: KnownKey | None, new: AgentKey, now: datetime
) -> None:
    """Raise as CredentialStore.add_key does, unless a key may be added."""
    if signer is None or signer.key.credential_id != new.credential_id or not signer.is_good(now):
        raise Unauthorized("this key is not known, has ended, or was revoked")
    if known is not None and known.key.credential_id != new.credential_id:
        raise Conflict("this key is another credential's")


def use_key(
    db: StoreSession, key_id: str, now: datetime, older_end_at: datetime
) -> EndedRecord | None:
    """Fulfil CredentialStore.use_key. Return the line of the journal, if older keys end now."""
    known = find_key(db, key_id)
    if known is None or not db.change("begin_key", key_id=key_id, now=micros(now)):
        return None
    credential_id, end = known.key.credential_id, micros(older_end_at)
    older = db.change("end_older_keys", credential_id=credential_id, key_id=key_id, ends_at=end)
    db.change("drop_ended_keys", credential_id=credential_id, now=micros(now))
    if not older:
        return None
    return EndedRecord("key", key_id, micros(now), credential_id, end, known.key.public_key)


def find_credential(db: StoreSession, credential_id: str) -> Credential | None:
    """Fulfil CredentialStore.find_credential."""
    row = db.row("find_credential", credential_id=credential_id)
    return None if row is None else _credential(row)


def list_credentials(db: StoreSession) -> Sequence[Credential]:
    """Fulfil CredentialStore.list_credentials."""
    return list(map(_credential, db.rows("list_credentials")))


def revoke_credential(db: StoreSession, credential_id: str, now: datetime) -> bool:
    """Fulfil CredentialStore.revoke_credential. The first revocation counts."""
    if not db.change("revoke_credential", credential_id=credential_id, now=micros(now)):
        return db.row("find_credential", credential_id=credential_id) is not None
    db.change("count_revocation")
    return True


def ended(db: StoreSession) -> Sequence[EndedRecord]:
    """Return what has ended for good, for the journal."""
    return ended_in(db.connection)


def revocations(db: StoreSession) -> int:
    """Fulfil CredentialStore.revocations."""
    [(number,)] = db.rows("revocations")
    return number


def revoked_ids(db: StoreSession) -> frozenset[str]:
    """Fulfil RevocationStore.revoked_ids."""
    return frozenset(revoked for (revoked,) in db.rows("revoked_ids"))


def _put_secret(db: StoreSession, secret: TokenSecret) -> None:
    db.change(
        "put_token_secret",
        token_hash=secret.token_hash,
        token_id=secret.token_id,
        created_at=micros(secret.created_at),
        ends_at=micros_or_none(secret.ends_at),
    )


def _patterns_as_json(patterns: Sequence[str] | None) -> str | None:
    return None if patterns is None else msgspec.json.encode(patterns).decode()


def _patterns(stored: str | None) -> tuple[str, ...] | None:
    return None if stored is None else msgspec.json.decode(stored, type=tuple[str, ...])


def _target_columns(target: CommandTarget | None) -> dict[str, str | None]:
    if target is None:
        return {"target_id": None, "target_type": None}
    return {"target_id": target.resource_id, "target_type": target.resource_type.value}


def _target(target_id: str | None, target_type: str | None) -> CommandTarget | None:
    if target_id is None or target_type is None:
        return None
    return target_of(target_id, target_type)


def _put_key(
    db: StoreSession, key_id: str, credential_id: str, public_key: bytes, now: datetime
) -> None:
    db.change(
        "put_key",
        key_id=key_id,
        credential_id=credential_id,
        public_key=public_key,
        now=micros(now),
    )


def _key(db: StoreSession, key_id: str) -> KnownKey:
    known = find_key(db, key_id)
    assert known is not None
    return known


def _token(row: Row) -> BearerToken:
    (
        token_id,
        scope,
        name,
        created_at,
        created_by,
        deployments,
        commands,
        target_id,
        target_type,
        agent_id,
        expires_at,
        revoked_at,
        last_used_at,
    ) = row
    return BearerToken(
        token_id=token_id,
        scope=scope,
        name=name,
        created_at=moment(created_at),
        created_by=created_by,
        deployments=_patterns(deployments),
        commands=_patterns(commands),
        target=_target(target_id, target_type),
        agent_id=agent_id,
        expires_at=moment_or_none(expires_at),
        revoked_at=moment_or_none(revoked_at),
        last_used_at=moment_or_none(last_used_at),
    )


def _enrol_token(row: Row) -> EnrolToken:
    (
        token_hash,
        token_id,
        deployment_id,
        uses,
        used,
        created_at,
        expires_at,
        revoked_at,
        target_id,
        target_type,
    ) = row
    return EnrolToken(
        token_hash=token_hash,
        token_id=token_id,
        deployment_id=deployment_id,
        uses=uses,
        used=used,
        created_at=moment(created_at),
        expires_at=moment(expires_at),
        revoked_at=moment_or_none(revoked_at),
        target=_target(target_id, target_type),
    )


def _known_key(row: Row) -> KnownKey:
    """Read a row of the query `find_key`."""
    key_id, credential_id, public_key, made_at, used_at, ends_at, *credential = row
    return KnownKey(
        key=AgentKey(
            key_id=key_id,
            credential_id=credential_id,
            public_key=public_key,
            made_at=moment(made_at),
            used_at=moment_or_none(used_at),
            ends_at=moment_or_none(ends_at),
        ),
        credential=_credential(credential),
    )


def _credential(row: Row) -> Credential:
    (
        credential_id,
        deployment_id,
        hostname,
        enrol_token_id,
        enrolled_at,
        revoked_at,
        target_id,
        target_type,
        is_target_bound,
    ) = row
    return Credential(
        credential_id=credential_id,
        deployment_id=deployment_id,
        hostname=hostname,
        enrol_token_id=enrol_token_id,
        enrolled_at=moment(enrolled_at),
        revoked_at=moment_or_none(revoked_at),
        target=_target(target_id, target_type),
        is_target_bound=is_target_bound == 1,
    )
