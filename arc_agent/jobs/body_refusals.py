"""The body refusals tell a response that does not get through from a server that fails.

Something on the way (a proxy with a size limit, a firewall for web applications) refuses one body,
without a code of the server's, while small requests are answered. The response is tried again after
growing pauses; after some tries a small error takes its place. If the error is refused too, the
body is not the reason, and the response itself is tried again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

import structlog

from arc_agent.host.clock import MonotonicClock
from arc_agent.host.threads import call_in
from arc_agent.jobs.blocked import Blocked
from arc_agent.jobs.delivery_plan import Pending
from arc_agent.jobs.lease_table import LeaseTable
from arc_agent.jobs.submission import Submission
from arc_agent.net.connection import BackOff, NoContact
from arc_agent.net.server_state import ServerState

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_ABOUT_ALL: Final = (401, 407, 429)
"""Statuses about the token, the proxy's credentials or the rate of requests, not about a body."""


def may_be_about_one(error: NoContact) -> bool:
    """Return True unless a failure is the server's own word, or about all requests."""
    return error.code is None and error.retry_after is None and error.status not in _ABOUT_ALL


class BodyRefusals:
    """The rules for bodies that are refused on their way."""

    def __init__(
        self,
        *,
        submission: Submission,
        contact: ServerState,
        leases: LeaseTable,
        clock: MonotonicClock,
        back_off: BackOff,
        on_due: Callable[[Pending], None],
    ) -> None:
        """Call `on_due` in the main loop for a response that has become due meanwhile."""
        self._submission = submission
        self._contact = contact
        self._leases = leases
        self._clock = clock
        self._back_off = back_off
        self._on_due = on_due

    async def is_one(self, pending: Pending, error: NoContact) -> bool:
        """Return True if a request failed although small ones are answered at the same place."""
        return (
            may_be_about_one(error)
            and not self._contact.fails_beyond("submit")
            and await self._submission.passes_others(pending)
        )

    def count(self, pending: Pending, error: NoContact) -> None:
        """Put a response off, or decide to send something else in its place at once."""
        entry, now = pending.entry, self._clock()
        blocked = pending.blocked
        if blocked is None:
            blocked = pending.blocked = Blocked(now)
            log.warning(
                "response.blocked",
                command_id=entry.to.command_id,
                bytes=entry.size,
                reason=error.reason,
            )
        pending.failures += 1
        pending.is_alone = True
        self._listen(pending, blocked)
        pending.due_at = now + self._back_off.seconds(blocked.tries + 1, None)
        if pending.is_replaced:  # so small a body does not pass either: its size is not the reason
            pending.is_replaced = False
            return
        blocked.count(error)
        others_passed = (self._contact.answered_at or -math.inf) > blocked.since
        if blocked.is_unwanted:
            _replace(pending)
        elif blocked.is_hopeless and others_passed:
            self._give_way(pending, blocked)

    def _give_way(self, pending: Pending, blocked: Blocked) -> None:
        """Send a body by the server in place of its store, or an error in place of the body."""
        if pending.must_upload and self._submission.may_go_inline(pending):
            pending.is_unstorable = True
            pending.due_at = 0.0
            blocked.tries = 0
        else:
            _replace(pending)

    def _listen(self, pending: Pending, blocked: Blocked) -> None:
        """Replace a blocked response as soon as the sender cancels its command."""
        lease = self._leases.get(pending.entry.to.lease_id)
        if lease is None or lease is blocked.lease:
            return

        def changed() -> None:
            if lease.is_unwanted and not (pending.is_busy or pending.is_replaced):
                _replace(pending)
                self._on_due(pending)

        blocked.lease = lease
        loop = asyncio.get_running_loop()
        lease.on_change(lambda: call_in(loop, changed))


def _replace(pending: Pending) -> None:
    """Send a small error in a response's place, at once."""
    pending.is_replaced = True
    pending.due_at = 0.0
