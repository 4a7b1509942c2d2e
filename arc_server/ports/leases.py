"""The port for holders: leasing, renewing and releasing commands, and completing them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from arc_protocol.errors import ArcError
from arc_server.ports.commands import CommandLookup
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.ports.records import (
    CommandRecord,
    Completion,
    Granted,
    LeasedResponse,
    LeaseQuery,
    Renewal,
    StoredResponse,
)


class LeaseStore(CommandLookup, Protocol):
    """Commands as their holders see them."""

    async def lease(self, query: LeaseQuery, now: datetime) -> Granted:
        """Hand out up to `len(lease_ids)` ready commands of one target, first ready first.

        Each becomes DISPATCHED with a lease of its own until `now + lease_seconds`. Overdue
        commands on the way end as EXPIRED, those with damaged params as FAILED; neither counts.
        Push commands are never handed out.

        With `auto_register` an unknown deployment and the named target are registered. The first
        target of a deployment takes over the commands that wait under the implicit one, and its
        idempotency keys.
        """
        ...

    async def renew(
        self,
        lease_ids: Sequence[str],
        lease_seconds: float,
        now: datetime,
        within: Reach = EVERYTHING,
    ) -> Renewal:
        """Extend leases to `now + lease_seconds`; never shorten one.

        A lease can be renewed while its command is DISPATCHED under it, lapsed or not. Leases out
        of the caller's reach are lost to it.
        """
        ...

    async def release(
        self,
        lease_id: str,
        now: datetime,
        *,
        costs_attempt: bool,
        within: Reach = EVERYTHING,
        push_after: datetime | None = None,
    ) -> CommandRecord:
        """End a lease without a response. `lifecycle.hand_back` decides what follows: redelivery or
        failure.

        The command keeps its place in the order, and is not pushed again before `push_after`. An
        overdue command ends as EXPIRED. Raises LeaseNotFound unless it is the latest lease of a
        DISPATCHED command, and the caller's.
        """
        ...

    async def complete(
        self,
        command_id: str,
        lease_id: str | None,
        response: StoredResponse,
        now: datetime,
        within: Reach = EVERYTHING,
    ) -> Completion:
        """End a DISPATCHED command as SUCCEEDED or FAILED with the response, exactly once.

        If it has ended already, nothing changes. If it is overdue, it ends as EXPIRED and the
        response is dropped (`changed` is True, the state shows it). A `lease_id` must name the
        latest lease; a lapsed or released one completes too while its command is PENDING. Without
        `lease_id` the command must be DISPATCHED.

        Raises CommandNotFound, LeaseLost (leased again since, never that lease, or another
        credential's; also when the command has ended), Forbidden (no lease named, and another
        credential holds it), InvalidStateTransition (no lease named and not
        DISPATCHED, or never dispatched).
        """
        ...

    async def complete_all(
        self, submissions: Sequence[LeasedResponse], now: datetime, within: Reach = EVERYTHING
    ) -> Sequence[Completion | ArcError]:
        """Run `complete` for each submission, in one transaction.

        Return the completion of each, or the error that it raised.
        """
        ...
