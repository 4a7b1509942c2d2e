"""Who is calling: from an `Authorization` header to a scope and a deployment."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from arc_protocol.errors import Unauthorized
from arc_server.auth.tokens import Scope, hash_token, is_well_formed
from arc_server.ports import Clock, CommandStore, Token

MAX_REMEMBERED: Final = 10_000
"""Tokens whose look-up is remembered; far more than an installation has agents and senders."""

_SCOPES: Final = frozenset(scope.value for scope in Scope)


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """What the one who calls may do."""

    scope: Scope
    deployment_id: str | None = None
    """Bound to this deployment; None: all."""
    token_id: str | None = None
    """Names the token in logs; None when none was needed."""


ANYBODY: Final = Caller(scope=Scope.ADMIN)
"""Every caller of a server that runs with --no-auth."""


class Authenticator:
    """Tells callers by their tokens.

    A look-up is remembered for some seconds, so that a request costs no read of the database; a
    revoked token stops working when they are over. Unknown tokens are not remembered: a new one
    works at once.
    """

    def __init__(
        self, store: CommandStore, clock: Clock, *, cache_seconds: float, no_auth: bool = False
    ) -> None:
        """`no_auth`: every caller is an admin, whatever header it sends."""
        self._store = store
        self._clock = clock
        self._cache_seconds = cache_seconds
        self._no_auth = no_auth
        self._known: dict[bytes, tuple[float, Caller]] = {}
        self._looking: dict[bytes, asyncio.Task[Token | None]] = {}

    async def caller(self, authorization: str | None) -> Caller:
        """The caller behind a header. Raises Unauthorized, StoreUnavailable."""
        if self._no_auth:
            return ANYBODY
        if authorization is None:
            raise Unauthorized("a bearer token is needed")
        kind, _, text = authorization.partition(" ")
        text = text.strip(" ")
        if kind.lower() != "bearer" or not is_well_formed(text):
            raise Unauthorized("not a bearer token of this server")
        digest = hash_token(text)
        known = self._known.get(digest)
        if known is not None and self._clock.monotonic() < known[0]:
            return known[1]
        return await self._look_up(digest)

    def anonymous(self) -> Caller | None:
        """Who a request without a token comes from: nobody, unless tokens are switched off."""
        return ANYBODY if self._no_auth else None

    async def _look_up(self, digest: bytes) -> Caller:
        self._known.pop(digest, None)
        token = await self._find(digest)
        if token is None or token.revoked_at is not None or token.scope not in _SCOPES:
            raise Unauthorized("this token is not known, or was revoked")
        caller = Caller(
            scope=Scope(token.scope), deployment_id=token.deployment_id, token_id=token.token_id
        )
        while len(self._known) >= MAX_REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[digest] = (self._clock.monotonic() + self._cache_seconds, caller)
        return caller

    async def _find(self, digest: bytes) -> Token | None:
        """One read for all requests that come with the same token at the same time."""
        looking = self._looking.get(digest)
        if looking is None:
            looking = asyncio.get_running_loop().create_task(self._store.find_token(digest))
            self._looking[digest] = looking
            looking.add_done_callback(lambda done: self._looked(digest, done))
        return await asyncio.shield(looking)

    def _looked(self, digest: bytes, done: asyncio.Task[Token | None]) -> None:
        self._looking.pop(digest, None)
        if not done.cancelled():
            done.exception()  # if everybody who waited is gone, nobody else asks for it
