"""Revocation within seconds, also of requests that wait, also by another process.

Whoever revokes counts it in the database. Each server looks at that number every second; when it
is another, no look-up is remembered any longer, and every request that waits must show again that
its caller is good. Those that are not end with a 401.
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


class Waiting(Protocol):
    """A request that waits."""

    @property
    def authorization(self) -> str | None:
        """Its header; None when it needs no caller."""
        ...

    @property
    def epoch(self) -> int:
        """`Waits.epoch` before its caller was looked up."""
        ...

    def revoke(self) -> None:
        """End the wait: whoever asked may not any more."""
        ...


class Waits:
    """All requests that wait in this process."""

    def __init__(self) -> None:
        self._all: Final[set[Waiting]] = set()
        self.suspects: Final[set[Waiting]] = set()
        """Those whose caller was looked up before the last revocation and that came after it."""
        self.epoch = 0
        """How many revocations were seen."""

    def __len__(self) -> int:
        return len(self._all)

    def add(self, waiting: Waiting) -> None:
        """It begins to wait."""
        self._all.add(waiting)
        if waiting.epoch != self.epoch:
            self.suspects.add(waiting)

    def discard(self, waiting: Waiting) -> None:
        """It waits no longer."""
        self._all.discard(waiting)
        self.suspects.discard(waiting)

    def everybody(self) -> Sequence[Waiting]:
        """All of them."""
        return tuple(self._all)


class Revocations:
    """The loop that looks."""

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
        """Look for ever; ends when cancelled."""
        while True:
            try:
                await self.look()
            except StoreUnavailable as error:  # requests find out by themselves
                log.debug("revocations.not_read", reason=error.message)
            await self._clock.sleep(self._interval_seconds)

    async def look(self) -> None:
        """Act on what was revoked since the last look. Raises StoreUnavailable."""
        waits = self._waits
        number = await self._store.revocations()
        if self._number is None or number == self._number:
            await self._judge(tuple(waits.suspects))
        else:
            waits.epoch += 1
            self._authenticator.forget()
            await self._judge(waits.everybody())
        self._number = number

    async def _judge(self, suspects: Sequence[Waiting]) -> None:
        """End the waits of those that are not good any more. Raises StoreUnavailable."""
        by_authorization: dict[str, list[Waiting]] = {}
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
