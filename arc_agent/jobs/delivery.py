"""Delivery empties the spool: it tries each response until the server has taken or refused it.

In order, as long as the server takes them; a response that fails alone does not keep the others
waiting. Responses that are finished while others are on their way go together in one request, if
the server takes that. Uploads of large bodies go on beside.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from arc_agent.host.clock import MonotonicClock
from arc_agent.host.pulse import Pulse
from arc_agent.jobs.body_refusals import BodyRefusals, may_be_about_one
from arc_agent.jobs.delivery_plan import DeliveryQueue, Pending, Plan, Window
from arc_agent.jobs.lease_table import LeaseTable
from arc_agent.jobs.spool import Spool
from arc_agent.jobs.spool_rows import Entry
from arc_agent.jobs.submission import Submission
from arc_agent.net.connection import BackOff, NoContact, Refused, ServerConnection, code_of
from arc_agent.net.server_state import ServerState
from arc_agent.net.transfer import Transfer
from arc_protocol.messages.errors import ErrorBody
from arc_runtime.failpoints import hit

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_FIRST_SECONDS: Final = 0.1
_QUICK_SECONDS: Final = 1.0
"""While the lease lasts, a response is tried again after 100 ms, doubling to 1 s
(docs/protocol.md, Retries)."""
_DONE: Final = (404, 409, 410)
"""Answers after which the server wants the response no more."""
_REQUESTS: Final = 4
"""Requests on their way at once while all is well; one at a time after a failure."""
_UPLOADS: Final = 2
_SPACING_SECONDS: Final = 0.005
"""A finished response waits this long for company while another request is on its way. To a server
at hand that is until the request returns; to one 100 ms away it costs nothing that counts."""


class Delivery:
    """The loop that empties the spool. `run` is a task of the agent's group."""

    def __init__(
        self,
        *,
        spool: Spool,
        transfer: Transfer,
        connection: ServerConnection,
        contact: ServerState,
        leases: LeaseTable,
        clock: MonotonicClock,
        back_off: BackOff,
    ) -> None:
        self._spool = spool
        self._connection = connection
        self._contact = contact
        self._leases = leases
        self._clock = clock
        self._back_off = back_off
        self._submission = Submission(
            spool=spool, transfer=transfer, connection=connection, contact=contact
        )
        self._refusals = BodyRefusals(
            submission=self._submission,
            contact=contact,
            leases=leases,
            clock=clock,
            back_off=back_off,
            on_due=self._due,
        )
        self._queue = DeliveryQueue()
        self._requests = 0
        self._uploads = 0
        self._requested_at = -math.inf
        self._paused_until = 0.0
        self._pauses = 0
        """Failures in a row that were about the server, not about one response."""
        self._backlog = 0
        """Responses that are left of an outage: they go one request at a time, in order."""
        self._backlog_until = 0
        self._untried: set[int] = set()
        """The responses that `settle` waits for."""
        self.pulse = Pulse(clock)
        """True to the watchdog as long as the loop moves."""
        self._group = asyncio.TaskGroup()
        self._changed = asyncio.Event()
        self._moved = asyncio.Event()
        for entry in spool.entries():
            self._add(entry)
        spool.on_entry(self._entered)

    def hurry(self) -> None:
        """Try everything now but what is blocked: the server is back, or time is short."""
        self._paused_until = 0.0
        self._queue.hurry()
        self._changed.set()

    async def settle(self) -> None:
        """Wait until each response that waits now was tried once, or the server does not answer.

        The poller calls it, because finished work goes before new work.
        """
        self._untried = {each.entry.seq for each in self._queue if each.blocked is None}
        pauses = self._pauses
        self.hurry()
        await self._until(lambda: self._pauses > pauses or not self._untried)

    async def flush(self, seconds: float) -> bool:
        """Wait until the spool is empty, up to a time; return True if it is."""
        self.hurry()
        try:
            async with asyncio.timeout(seconds):
                await self._until(lambda: not len(self._spool))
        except TimeoutError:
            log.warning("spool.left", responses=len(self._spool))
        return not len(self._spool)

    async def run(self) -> None:
        """Deliver until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            while True:
                self._changed.clear()
                now = self._clock()
                plan = self._queue.plan(now, self._window())
                self._start(plan, now)
                seconds = max(0.0, plan.next_at - now)
                self.pulse.within(seconds)
                try:
                    async with asyncio.timeout(None if seconds == math.inf else seconds):
                        await self._changed.wait()
                except TimeoutError:
                    pass

    def _entered(self, entry: Entry) -> None:
        """Queue a response that has come, or that has another lease now."""
        pending = self._queue.get(entry.seq)
        if pending is None:
            self._add(entry)
        else:
            pending.rebind(entry)
            pending.is_ours = self._submission.is_ours(pending)
            if not pending.is_busy:
                self._queue.put(pending)
        self._changed.set()

    def _add(self, entry: Entry) -> None:
        """Queue a response, and note which server takes it."""
        pending = self._queue.add(entry)
        pending.is_ours = self._submission.is_ours(pending)

    def _window(self) -> Window:
        """Return how much may start now."""
        limit = 1 if self._pauses or self._backlog else _REQUESTS
        shares = self._submission.shares
        requests_at = self._paused_until
        if self._requests and shares:
            requests_at = max(requests_at, self._requested_at + _SPACING_SECONDS)
        return Window(
            requests=limit - self._requests,
            uploads=_UPLOADS - self._uploads,
            shares=shares,
            requests_at=requests_at,
        )

    def _start(self, plan: Plan, now: float) -> None:
        """Start what a plan says."""
        for pending in plan.uploads:
            self._uploads += 1
            self._group.create_task(self._upload(pending))
        for request in plan.requests:
            self._requests += 1
            self._requested_at = now
            alone = self._submit(request[0]) if len(request) == 1 else self._submit_all(request)
            self._group.create_task(alone)

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Wait until a condition holds that only the delivery's own progress makes true."""
        while not holds():
            self._moved.clear()
            await self._moved.wait()

    # Bodies

    async def _upload(self, pending: Pending) -> None:
        """Upload a body, once."""
        command_id = pending.entry.to.command_id
        try:
            if await self._submission.upload(pending):
                await self._spool.mark_uploaded(pending.entry)
                pending.failures = 0
            else:
                pending.is_unstorable = True
        except NoContact as error:
            log.debug("upload.failed", command_id=command_id, reason=error.reason)
            await self._failed_alone(pending, error)
        except Exception as error:  # one body must not end the delivery of the others
            log.exception("upload.failed", command_id=command_id)
            self._later(pending, error)
        finally:
            self._uploads -= 1
            self._put_back([pending])

    # Messages

    async def _submit(self, pending: Pending) -> None:
        """Submit one response, once."""
        try:
            await self._submit_once(pending)
        except NoContact as error:
            await self._failed(pending, error)
        except Exception as error:  # one response must not end the delivery of the others
            log.exception("submit.failed", command_id=pending.entry.to.command_id)
            self._later(pending, error)
        finally:
            self._requests -= 1
            self._put_back([pending])

    async def _submit_once(self, pending: Pending) -> None:
        """Send a response and act on the answer. Raises NoContact to try again later."""
        entry = pending.entry
        answer = await self._submission.put(pending)
        if answer.is_page or (answer.status >= 400 and code_of(answer) is None):
            # Errors of the server have a code; this one is of something on the way, most likely.
            raise NoContact(
                f"{answer.status} and not a word of the server's own", status=answer.status
            )
        if self._submission.is_ours(pending):
            self._contact.succeeded("submit")
        self._server_answered()
        if answer.status < 300:
            self._delivered([pending])
        elif answer.status in _DONE:
            self._too_late([(pending, entry, answer.status)])
        elif answer.status == 400 and entry.is_uploaded and not pending.was_uploaded_again:
            pending.was_uploaded_again = True
            log.warning("upload.missing", command_id=entry.to.command_id)
            await self._spool.mark_uploaded(entry, False)
        else:
            reason = f"the server answered {answer.status}"
            log.error("response.refused", command_id=entry.to.command_id, reason=reason)
            self._forget(pending)
            await self._spool.bury(entry, reason)

    async def _submit_all(self, shared: list[Pending]) -> None:
        """Submit several responses in one request; one without an answer of its own goes alone."""
        try:
            entries = [pending.entry for pending in shared]
            errors = await self._submission.put_together(entries)
            self._contact.succeeded("submit")
            self._server_answered()
            self._answered(shared, entries, errors)
        except NoContact as error:
            pauses = self._pauses
            if error.status is None:
                await self._failed(shared[0], error)
            if self._pauses == pauses:  # no outage, in which they wait together
                self._part(shared, error.reason)
        except Exception as error:  # as for a response alone
            log.exception("submit.failed", responses=len(shared))
            self._part(shared, str(error))
        finally:
            self._requests -= 1
            self._put_back(shared)

    def _answered(
        self,
        shared: Sequence[Pending],
        entries: Sequence[Entry],
        errors: Sequence[ErrorBody | None],
    ) -> None:
        """Act on the server's answer to each of several responses."""
        answers = list(zip(shared, entries, errors, strict=True))
        self._delivered([pending for pending, _, error in answers if error is None])
        late: list[tuple[Pending, Entry, int]] = []
        for pending, entry, error in answers:
            if error is not None and error.http_status_code in _DONE:
                late.append((pending, entry, error.http_status_code))
            elif error is not None:
                pending.is_alone = True
        self._too_late(late)

    def _part(self, shared: Sequence[Pending], reason: str) -> None:
        """Send each alone: the server does not say which of them it cannot take."""
        log.debug("submit.apart", responses=len(shared), reason=reason)
        for pending in shared:
            pending.is_alone = True

    def _delivered(self, taken: Sequence[Pending]) -> None:
        """Let go of responses that the server has taken."""
        if not taken:
            return
        hit("agent.after_submit")
        if len(taken) == 1:
            to = taken[0].entry.to
            log.info("response.delivered", command_id=to.command_id, attempt=to.attempt)
        else:
            ids = [pending.entry.to.command_id for pending in taken]
            log.info("responses.delivered", command_ids=ids)
        for pending in taken:
            if pending.is_replaced and pending.blocked is not None:
                command_id, reason = pending.entry.to.command_id, pending.blocked.reason
                log.error("response.replaced", command_id=command_id, reason=reason)
            self._forget(pending)
        self._remove([pending.entry for pending in taken], is_taken=True)

    def _too_late(self, answers: Sequence[tuple[Pending, Entry, int]]) -> None:
        """Let go of responses that the server wants no more: as they were sent, and its answer."""
        gone: list[Entry] = []
        for pending, sent, status in answers:
            if pending.entry.to.lease_id != sent.to.lease_id:
                continue  # leased again meanwhile: it goes out under that lease
            hit("agent.after_submit")
            log.warning(
                "response.too_late",
                command_id=sent.to.command_id,
                attempt=sent.to.attempt,
                status=status,
            )
            self._forget(pending)
            gone.append(pending.entry)
        self._remove(gone, is_taken=False)

    def _remove(self, entries: Sequence[Entry], *, is_taken: bool) -> None:
        """Take responses out of the spool; the next request does not wait for it."""

        async def remove() -> None:
            await self._spool.remove(*entries, is_taken=is_taken, may_linger=True)
            self._moved.set()

        if entries:
            self._group.create_task(remove())

    def _forget(self, pending: Pending) -> None:
        """Do nothing more for a response."""
        entry = pending.entry
        self._leases.remove(entry.to.lease_id)
        if self._queue.remove(entry.seq) is not None and entry.seq <= self._backlog_until:
            self._backlog -= 1
        self._untried.discard(entry.seq)

    def _put_back(self, tried: Sequence[Pending]) -> None:
        """Queue again what is still to be delivered, and go on."""
        for pending in tried:
            current = self._spool.get(pending.entry.seq)
            if current is not None:
                pending.entry = current
            self._queue.put(pending)
        self._changed.set()
        self._moved.set()

    # Failures

    def _server_answered(self) -> None:
        """End the pauses: the server took or judged a response."""
        if self._pauses:
            self._backlog = len(self._queue)
            self._backlog_until = max((each.entry.seq for each in self._queue), default=0)
        self._pauses = 0

    async def _failed(self, pending: Pending, error: NoContact) -> None:
        """Decide whether the server fails, and all wait, or this response alone."""
        seconds = await self._failed_alone(pending, error)
        if seconds is None:
            return
        is_ours = self._submission.is_ours(pending)
        if is_ours:
            self._contact.failed("submit", error.reason, is_refusal=isinstance(error, Refused))
        is_general = is_ours and (may_be_about_one(error) or self._contact.fails_beyond("submit"))
        if is_general:
            self._pauses += 1
            self._paused_until = self._clock() + seconds
            pending.due_at = 0.0  # it stays the first

    async def _failed_alone(self, pending: Pending, error: NoContact) -> float | None:
        """Put a response off; return by how many seconds, None if its body is the reason."""
        if not await self._refusals.is_one(pending, error):
            return self._later(pending, error)
        self._refusals.count(pending, error)
        self._untried.discard(pending.entry.seq)
        return None

    def _due(self, pending: Pending) -> None:
        """Try a response that has become due."""
        self._queue.put(pending)
        self._changed.set()

    def _later(self, pending: Pending, error: Exception) -> float:
        """Put a response off; return by how many seconds."""
        pending.failures += 1
        self._untried.discard(pending.entry.seq)
        now = self._clock()
        lease = self._leases.get(pending.entry.to.lease_id)
        is_quick = lease is not None and lease.ends_at > now and not pending.must_upload
        if is_quick and not isinstance(error, Refused):
            seconds = min(_QUICK_SECONDS, _FIRST_SECONDS * 2.0 ** min(pending.failures - 1, 10))
        else:
            seconds = self._back_off.seconds(pending.failures, error)
        pending.due_at = now + seconds
        return seconds
