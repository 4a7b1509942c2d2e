"""Revocations take effect within seconds, also on requests that wait, also from another process.

Each revocation raises a number in the database, which each server reads every second. When it has
changed, the server forgets its look-ups and looks up the caller of each request that waits again;
the wait of a revoked caller ends with a 401.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from arc_protocol.errors import StoreUnavailable, Unauthorized
from arc_server.auth.callers import Authenticator
from arc_server.ports.clock import Clock
from arc_server.ports.credentials import CredentialStore

log = structlog.get_logger(__name__)


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

    def revoke(self) -> None:
        """End the wait: the caller was revoked."""
        ...


class Waits:
    """All requests that wait in this process."""

    def __init__(self) -> None:
        self._all: Final[set[RevocableWait]] = set()
        self.suspects: Final[set[RevocableWait]] = set()
        """Requests that began to wait after a revocation, with a caller looked up before it."""
        self.epoch = 0
        """The number of changes that were seen."""

    def __len__(self) -> int:
        return len(self._all)

    def add(self, waiting: RevocableWait) -> None:
        """Add a request that begins to wait."""
        self._all.add(waiting)
        if waiting.epoch != self.epoch:
            self.suspects.add(waiting)

    def discard(self, waiting: RevocableWait) -> None:
        """Remove a request that waits no longer."""
        self._all.discard(waiting)
        self.suspects.discard(waiting)

    def all(self) -> Sequence[RevocableWait]:
        """Return every request that waits."""
        return tuple(self._all)


class Revocations:
    """The loop that reads the number and acts on a change."""

    def __init__(
        self,
        *,
        store: CredentialStore,
        authenticator: Authenticator,
        waits: Waits,
        clock: Clock,
        interval_seconds: float,
    ) -> None:
        self._store = store
        self._authenticator = authenticator
        self._waits = waits
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._number: int | None = None

    async def run(self) -> None:
        """Check for ever, until cancelled."""
        while True:
            try:
                await self.check()
            except StoreUnavailable as error:  # requests meet the error themselves
                log.debug("revocations.not_read", reason=error.message)
            await self._clock.sleep(self._interval_seconds)

    async def check(self) -> None:
        """Act on revocations since the last check. Raises StoreUnavailable."""
        waits = self._waits
        number = await self._store.revocations()
        if self._number is None or number == self._number:
            await self._judge(tuple(waits.suspects))
        else:
            waits.epoch += 1
            self._authenticator.forget()
            await self._judge(waits.all())
        self._number = number

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
            except Unauthorized as error:
                for each in waiting:
                    each.revoke()
                log.info("wait.revoked", requests=len(waiting), reason=error.message)
