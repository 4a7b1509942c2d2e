"""The meter counts what the server does. It counts nothing unless `metrics.listen` is set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple, Protocol

from arc_protocol.messages.base import State
from arc_server.ports.records import CommandRecord

Move = tuple[CommandRecord, State | None, State, datetime, bool, bool]
"""One move of a command to another state: the command as it was before, or a new one; its state
then, None for a new one; its state now; when; True if a lease is granted by it; True if the params
came after the create, so that the command was ready later.

A bare tuple: to make a named one costs fifteen times that, three times for each command."""


class StoreFigures(NamedTuple):
    """Figures that a look into the database gives, and no meter can count."""

    oldest_pending_at: datetime | None
    """When the oldest PENDING command was created; None if there is none."""
    stored_bytes: int
    """Bodies and registrations of all deployments, as their quotas count them."""
    agents: int
    """Registered agents of all deployments, those that are gone included."""


class ServerMeter(Protocol):
    """The counting methods. They cost little, and none of them raises."""

    is_on: bool
    """False if it counts nothing: callers need not measure then."""

    def answered(
        self,
        route: str | None,
        method: str,
        status: int,
        seconds: float,
        wakeup_seconds: float | None,
        received_bytes: int,
        sent_bytes: int,
        /,
    ) -> None:
        """Count an answered request. For the event loop only.

        `route` is the template of the path, like `/commands/*`; None if no route was found. It took
        `seconds` until the answer was made, without the time that the request waited on purpose,
        and `wakeup_seconds` from the end of its wait; None if it was not woken. Bytes are those of
        bodies.
        """
        ...

    def refused(self, reason: str) -> None:
        """Count a refused request or connection. For the event loop only."""
        ...

    def pushed(self, outcome: str) -> None:
        """Count a push. For the event loop only."""
        ...

    def removed(self, what: str, count: int) -> None:
        """Count what retention has removed: `commands`, `bodies`, … For the event loop only."""
        ...

    def began(self, live: Mapping[State, int]) -> None:
        """Take over how many commands are live when the counting begins, by state. For the writing
        thread only."""
        ...

    def committed(self, operations: int, seconds: float, moves: Sequence[Move]) -> None:
        """Count a commit, which took so long itself. For the writing thread only."""
        ...

    def wrote(self, seconds: float) -> None:
        """Count the time that a batch kept the writing thread. For that thread only."""
        ...


class NoServerMeter:
    """A meter that counts nothing."""

    is_on = False

    def answered(self, *_: object) -> None: ...

    def refused(self, reason: str) -> None: ...

    def pushed(self, outcome: str) -> None: ...

    def removed(self, what: str, count: int) -> None: ...

    def began(self, live: Mapping[State, int]) -> None: ...

    def committed(self, operations: int, seconds: float, moves: Sequence[Move]) -> None: ...

    def wrote(self, seconds: float) -> None: ...


NO_METER: Final[ServerMeter] = NoServerMeter()
TOO_MANY_CONNECTIONS: Final = "too_many_connections"
"""The reason of a connection past a limit. Other reasons are codes of errors, in lower case."""
