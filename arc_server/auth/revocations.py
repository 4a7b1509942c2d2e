"""Revocations take effect within seconds, also on requests that wait, also from another process.

Each revocation raises a number in the database, which each server reads every second. When it has
changed, the server forgets its look-ups, refuses the URLs that it signed for what was revoked, ends
the requests of revoked callers that wait, and takes their leases back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final, Protocol

import structlog

from arc_protocol.errors import Forbidden, StoreUnavailable, Unauthorized, Unavailable
from arc_server.auth.callers import Authenticator
from arc_server.ports.clock import Clock
from arc_server.ports.credentials import CredentialStore
from arc_server.ports.records import CommandRecord

log = structlog.get_logger(__name__)

BATCH: Final = 500
"""Leases that are taken back in one write."""


class RevocableWait(Protocol):
    """A request that waits."""

    @property
    def authorization(self) -> str | None:
        """Return the header that identified its caller; None if it needs no caller."""
        ...

    @property
    def epoch(self) -> int:
        """Return `Waits.epoch` as it was before its caller was looked up."""
        ...

    @property
    def ends_at(self) -> datetime | None:
        """Return when the token of its caller expires; None: never."""
        ...

    def revoke(self, reason: str) -> None:
        """End the wait: the token of the caller is good no more."""
        ...


class Waits:
    """All requests that wait in this process."""

    def __init__(self) -> None:
        self._all: Final[set[RevocableWait]] = set()
        self._expiring: Final[set[RevocableWait]] = set()
        self.suspects: Final[set[RevocableWait]] = set()
        """Requests that began to wait after a revocation, with a caller looked up before it."""
        self.epoch = 0
        """The number of changes that were seen."""

    def __len__(self) -> int:
        return len(self._all)

    def add(self, waiting: RevocableWait) -> None:
        """Add a request that begins to wait."""
        self._all.add(waiting)
        if waiting.ends_at is not None:
            self._expiring.add(waiting)
        if waiting.epoch != self.epoch:
            self.suspects.add(waiting)

    def discard(self, waiting: RevocableWait) -> None:
        """Remove a request that waits no longer."""
        self._all.discard(waiting)
        self._expiring.discard(waiting)
        self.suspects.discard(waiting)

    def all(self) -> Sequence[RevocableWait]:
        """Return every request that waits."""
        return tuple(self._all)

    def expire(self, now: datetime) -> None:
        """End the waits of callers whose token has expired."""
        for each in tuple(self._expiring):
            if each.ends_at is not None and each.ends_at <= now:
                self._expiring.discard(each)
                each.revoke("expired")


class Revoked:
    """The ids of all tokens and credentials that were revoked, as last read."""

    def __init__(self) -> None:
        self.ids: frozenset[str] = frozenset()

    def check(self, by: str | None) -> None:
        """Raise Unauthorized for a URL that was signed for a revoked token or credential."""
        if by is not None and by in self.ids:
            raise Unauthorized("the token or credential of this URL was revoked", reason="revoked")


class Revocations:
    """The loop that reads the number and acts on a change."""

    def __init__(
        self,
        *,
        store: CredentialStore,
        authenticator: Authenticator,
        waits: Waits,
        revoked: Revoked,
        announce: Callable[[Sequence[CommandRecord]], None],
        clock: Clock,
        interval_seconds: float,
    ) -> None:
        """Keep `revoked` up to date; `announce` commands whose leases were taken back."""
        self._store = store
        self._authenticator = authenticator
        self._waits = waits
        self._revoked = revoked
        self._announce = announce
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._number: int | None = None
        self._is_owed_a_look = False

    async def run(self) -> None:
        """Check for ever, until cancelled."""
        while True:
            try:
                await self.check()
            except StoreUnavailable as error:  # requests meet the error themselves
                log.debug("revocations.not_read", reason=error.message)
            await self._clock.sleep(self._interval_seconds)

    async def check(self) -> None:
        """Act on what has expired or was revoked since the last check. Raises StoreUnavailable."""
        waits = self._waits
        waits.expire(self._clock.now())
        number = await self._store.revocations()
        if number == self._number:
            await self._judge(tuple(waits.suspects))
            if self._is_owed_a_look:
                await self._take_leases_back()
                self._is_owed_a_look = False
        else:
            waits.epoch += self._number is not None
            self._authenticator.forget()
            self._revoked.ids = await self._store.revoked_ids()
            await self._judge(waits.all())
            await self._take_leases_back()
            # A request that was let in before may have got a lease after this look.
            self._is_owed_a_look = True
        self._number = number
        if used := self._authenticator.take_used():
            await self._store.use_tokens(used)

    async def _take_leases_back(self) -> None:
        """Take back what revoked callers hold. Raises StoreUnavailable."""
        if not self._revoked.ids:
            return
        while commands := await self._store.requeue_revoked(self._clock.now(), BATCH):
            log.info("leases.taken_back", leases=len(commands))
            self._announce(commands)
            if len(commands) < BATCH:
                return

    async def _judge(self, suspects: Sequence[RevocableWait]) -> None:
        """End the waits of revoked callers. Raises StoreUnavailable."""
        by_authorization: dict[str, list[RevocableWait]] = {}
        for each in suspects:
            self._waits.suspects.discard(each)
            if each.authorization is not None:
                by_authorization.setdefault(each.authorization, []).append(each)
        for authorization, waiting in by_authorization.items():
            try:
                await self._authenticator.caller(authorization)
            except (Unauthorized, Forbidden) as error:
                for each in waiting:
                    each.revoke("was revoked")
                log.info("wait.revoked", requests=len(waiting), reason=error.message)
            except StoreUnavailable:
                raise
            except Unavailable as error:  # a provider of tokens, which knows no revocations
                log.debug("wait.not_judged", reason=error.message)
