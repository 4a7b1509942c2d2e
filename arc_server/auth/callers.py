"""Callers: from an `Authorization` header to a scope and a reach."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import datetime
from functools import partial
from typing import Any, Final

import msgspec

from arc_protocol.errors import Unauthorized
from arc_server.auth import access, bootstrap
from arc_server.auth.access import AccessTokens
from arc_server.auth.bootstrap import BootstrapGrant, BootstrapTokens
from arc_server.auth.oidc import OidcTokens
from arc_server.auth.tokens import Scope, hash_token, is_well_formed
from arc_server.ports.clock import Clock
from arc_server.ports.credentials import CredentialStore
from arc_server.ports.reach import ANY, EVERYTHING, Reach

USE_RECORDED_SECONDS: Final = 300
"""The time between two records of the use of one token: each is a write."""
MAX_REMEMBERED: Final = 10_000
"""Look-ups that are remembered: far more than an installation has agents and senders."""

_TOKEN: Final = "token"  # noqa: S105  # a kind of authority
_CREDENTIAL: Final = "credential"
_SCOPES: Final = frozenset(scope.value for scope in Scope)


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """The rights of the client that made a request."""

    scope: Scope
    reach: Reach
    """The bounds of the caller. Its `credential` names the token or credential in logs."""
    authority: str | None = None
    """The key of the token or credential, by which a bootstrap token names it."""
    is_bootstrapped: bool = False
    """True for a bootstrap token."""
    ends_at: datetime | None = None
    """When the token expires, and with it a wait of its request; None: never."""


UNCHECKED: Final = Caller(scope=Scope.ADMIN, reach=EVERYTHING)
"""The caller of every request to a server that runs with --no-auth."""


class Authenticator:
    """The authenticator finds the caller of a request by its token.

    A look-up is remembered for some seconds, so that most requests read nothing from the database,
    and at most until `forget`. Unknown tokens are not remembered: a new token works at once.
    """

    def __init__(
        self,
        store: CredentialStore,
        clock: Clock,
        *,
        cache_seconds: float,
        no_auth: bool = False,
        access: AccessTokens | None = None,
        bootstrap: BootstrapTokens | None = None,
        oidc: OidcTokens | None = None,
    ) -> None:
        """Take the access tokens of enrolled agents by `access`, bootstrap tokens by `bootstrap`,
        and those of OpenID Connect providers by `oidc`.

        With `no_auth` every caller is an admin, and its header is not read.
        """
        self._store = store
        self._clock = clock
        self._cache_seconds = cache_seconds
        self._no_auth = no_auth
        self._known: dict[bytes, tuple[float, Caller]] = {}
        self._looking: dict[bytes, asyncio.Task[Caller | None]] = {}
        self._access = access
        self._bootstrap = bootstrap
        self._oidc = oidc
        self._used: dict[str, datetime] = {}

    async def caller(self, authorization: str | None) -> Caller:
        """Return the caller of a header.

        Raises Unauthorized, StoreUnavailable; for a token of OpenID Connect also Forbidden, if no
        rule fits it, and Unavailable while its provider is away.
        """
        if self._no_auth:
            return UNCHECKED
        if authorization is None:
            raise Unauthorized("a bearer token is needed")
        kind, _, text = authorization.partition(" ")
        text = text.strip(" ")
        if kind.lower() != "bearer":
            raise Unauthorized("not a bearer token of this server")
        if self._access is not None and text.startswith(access.PREFIX):
            return await self._of_credential(self._access.read(text))
        if self._bootstrap is not None and text.startswith(bootstrap.PREFIX):
            return await self._of_grant(self._bootstrap.read(text))
        if self._oidc is not None and self._oidc.has_form(text):
            return await self._known_or(hash_token(text), partial(self._bearer_of, text))
        if not is_well_formed(text):
            raise Unauthorized("not a bearer token of this server")
        return await self._of_digest(hash_token(text))

    def forget(self) -> None:
        """Forget all look-ups: a token or a credential was revoked."""
        self._known.clear()
        self._looking.clear()

    def take_used(self) -> dict[str, datetime]:
        """Return when tokens were used, for those whose record is old; each use is told once."""
        used, self._used = self._used, {}
        return used

    def anonymous(self) -> Caller | None:
        """Return the caller of a request without a token; None unless tokens are switched off."""
        return UNCHECKED if self._no_auth else None

    async def _of_digest(self, digest: bytes) -> Caller:
        return await self._known_or(digest, partial(self._owner_of, digest))

    async def _of_credential(self, credential_id: str) -> Caller:
        return await self._known_or(
            credential_id.encode("ascii"), partial(self._holder_of, credential_id)
        )

    async def _of_grant(self, grant: BootstrapGrant) -> Caller:
        """Return the caller of a bootstrap token. Raises Unauthorized without its authority."""
        kind, _, key = (grant.authority or "").partition(":")
        if kind == _TOKEN:
            authority = await self._of_digest(bytes.fromhex(key))
        elif kind == _CREDENTIAL:
            authority = await self._of_credential(key)
        else:
            raise Unauthorized("this bootstrap token was made while tokens were switched off")
        return Caller(
            scope=grant.scope,
            reach=Reach(
                deployments=(grant.deployment_id,),
                commands=authority.reach.commands,
                target=grant.target,
                # A public receiver with an enrolled agent's bootstrap token has no agent id.
                agent_id=authority.reach.agent_id if kind == _TOKEN else None,
                credential=authority.reach.credential,
            ),
            is_bootstrapped=True,
            ends_at=authority.ends_at,
        )

    async def _known_or(
        self, key: bytes, find: Callable[[], Coroutine[Any, Any, Caller | None]]
    ) -> Caller:
        """Return the caller that is remembered under `key`, or found. Raises Unauthorized."""
        known = self._known.get(key)
        if known is not None and self._clock.monotonic() < known[0]:
            return known[1]
        self._known.pop(key, None)
        looking = self._look_up(key, find)
        caller = await asyncio.shield(looking)
        if caller is None:
            raise Unauthorized("this token is not known, or was revoked")
        return caller

    def _look_up(
        self, key: bytes, find: Callable[[], Coroutine[Any, Any, Caller | None]]
    ) -> asyncio.Task[Caller | None]:
        """Return the look-up for a key: one read for all requests that carry it at a time."""
        looking = self._looking.get(key)
        if looking is None:
            looking = asyncio.get_running_loop().create_task(find())
            self._looking[key] = looking
            looking.add_done_callback(lambda done: self._remember(key, done))
        return looking

    def _remember(self, key: bytes, done: asyncio.Task[Caller | None]) -> None:
        is_current = self._looking.get(key) is done
        if is_current:
            del self._looking[key]
        if done.cancelled() or done.exception() is not None:
            return  # retrieved here, in case no request waits for it any more
        caller = done.result()
        if caller is None or not is_current:  # what was read before a `forget` is not remembered
            return
        while len(self._known) >= MAX_REMEMBERED:
            del self._known[next(iter(self._known))]
        seconds = self._cache_seconds
        if caller.ends_at is not None:
            seconds = min(seconds, (caller.ends_at - self._clock.now()).total_seconds())
        self._known[key] = (self._clock.monotonic() + seconds, caller)

    async def _owner_of(self, digest: bytes) -> Caller | None:
        """Return the caller of a token; None if it is unknown, revoked or expired."""
        known = await self._store.find_token(digest)
        now = self._clock.now()
        if known is None or (known.ends_at is not None and known.ends_at <= now):
            return None
        token = known.token
        if token.revoked_at is not None or token.scope not in _SCOPES:
            return None
        last = token.last_used_at
        if last is None or (now - last).total_seconds() >= USE_RECORDED_SECONDS:
            self._used[token.token_id] = now
        scope = Scope(token.scope)
        return Caller(
            scope=scope,
            reach=Reach(
                deployments=ANY if token.deployments is None else tuple(token.deployments),
                commands=ANY if token.commands is None else tuple(token.commands),
                target=token.target,
                agent_id=token.agent_id,
                credential=token.token_id,
                every_lease=scope is Scope.ADMIN,
                may_register=scope is Scope.ADMIN,
            ),
            authority=f"{_TOKEN}:{digest.hex()}",
            ends_at=known.ends_at,
        )

    async def _bearer_of(self, text: str) -> Caller:
        """Return the caller of an OpenID Connect token. Raises as `caller` does."""
        assert self._oidc is not None
        found = await self._oidc.read(text)
        return Caller(scope=found.scope, reach=found.reach, ends_at=found.ends_at)

    async def _holder_of(self, credential_id: str) -> Caller | None:
        """Return the caller of a credential: an agent, bound to its deployment and its target."""
        found = await self._store.find_credential(credential_id)
        if found is None or found.revoked_at is not None:
            return None
        return Caller(
            scope=Scope.AGENT,
            reach=Reach(
                deployments=(found.deployment_id,),
                target=found.target,
                is_default_only=found.is_target_bound and found.target is None,
                agent_id=found.hostname or None,
                credential=found.credential_id,
            ),
            authority=f"{_CREDENTIAL}:{credential_id}",
        )
