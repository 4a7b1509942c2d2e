"""The delivery plan decides what the delivery starts next, without I/O and without a clock.

A spool may hold ten thousand responses while the agent works. So they are indexed by when each is
due, and an event costs O(log n): no plan looks at responses that cannot start now.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from typing import Final

import msgspec

from arc_agent.jobs.blocked import Blocked
from arc_agent.jobs.spool_rows import Entry

SHARED: Final = 100
"""The most responses in one request."""
SHARED_BYTES: Final = 1024 * 1024
"""The size of a request with several responses, about."""


class Pending:
    """A response on its way to the server, as far as this process has come with it."""

    __slots__ = (
        "blocked",
        "due_at",
        "entry",
        "failures",
        "is_alone",
        "is_busy",
        "is_ours",
        "is_ready",
        "is_replaced",
        "is_unstorable",
        "needs_token",
        "was_uploaded_again",
    )

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.due_at = 0.0
        self.failures = 0
        self.is_busy = False
        """A plan has taken it, and its request has not ended."""
        self.is_ours = True
        """The configured server takes it. Another server, which its lease names, gets it alone."""
        self.is_ready = False
        """True while the entry is due, and in one of the heaps for that."""
        self.needs_token = entry.to.submit_url is None
        """True if its pre-authorised URL is refused or missing: the configured server takes it."""
        self.is_alone = False
        """The server did not take it together with others."""
        self.is_unstorable = False
        """The store does not accept its body."""
        self.blocked: Blocked | None = None
        """The failures of a body that does not get through while other requests are answered."""
        self.is_replaced = False
        """A small error goes out in its place."""
        self.was_uploaded_again = False

    def rebind(self, entry: Entry) -> None:
        """Take another lease's entry; it is due at once."""
        self.entry = entry
        self.due_at = 0.0
        self.needs_token = entry.to.submit_url is None

    @property
    def must_upload(self) -> bool:
        """Return True if its body has to go to the store first."""
        entry = self.entry
        return (
            entry.body is not None
            and not entry.is_uploaded
            and not self.is_unstorable
            and not self.is_replaced
        )

    @property
    def may_share(self) -> bool:
        """Return True if it may share a request: at its first try, and while it is small."""
        entry = self.entry
        return (
            self.is_ours
            and entry.body is None
            and entry.message_bytes < SHARED_BYTES
            and not self.failures
            and not self.is_alone
        )


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """The room that the delivery has now for new requests and uploads."""

    requests: int
    uploads: int
    shares: bool
    """The server takes several responses in one request."""
    requests_at: float = -math.inf
    """No request starts before that time: the server is paused for, or others are on their way."""


class Plan(msgspec.Struct, frozen=True):
    """The uploads and requests to start.

    Their responses are busy, and in no other plan, until they are put again.
    """

    uploads: list[Pending]
    requests: list[list[Pending]]
    """Each is one request: a response alone, or several in order."""
    next_at: float
    """When the next plan is worth making if nothing happens before; math.inf: not at all."""


class DeliveryQueue:
    """All responses that wait, by when they are due."""

    def __init__(self) -> None:
        self._pending: dict[int, Pending] = {}
        self._messages: list[int] = []
        """Heaps of what is due: in the order in which the responses came."""
        self._uploads: list[int] = []
        self._later: list[tuple[float, int]] = []
        """A heap of what is not due. Entries of the heaps that no longer fit are passed over."""

    def __len__(self) -> int:
        """Return how many responses wait, busy ones included."""
        return len(self._pending)

    def __iter__(self) -> Iterator[Pending]:
        """Iterate over all that wait."""
        return iter(self._pending.values())

    def get(self, seq: int) -> Pending | None:
        """Return a response that waits."""
        return self._pending.get(seq)

    def add(self, entry: Entry) -> Pending:
        """Queue a response; it is due at once."""
        pending = self._pending[entry.seq] = Pending(entry)
        self.put(pending)
        return pending

    def remove(self, seq: int) -> Pending | None:
        """Forget a response; return it if it was there."""
        return self._pending.pop(seq, None)

    def put(self, pending: Pending) -> None:
        """Queue a response again: its request has ended, or its time has changed."""
        pending.is_busy = pending.is_ready = False
        if self._pending.get(pending.entry.seq) is not pending:
            return
        if pending.due_at <= 0.0:
            self._make_ready(pending)
        else:
            heapq.heappush(self._later, (pending.due_at, pending.entry.seq))

    def hurry(self) -> None:
        """Make all responses due at once, but for the blocked ones. O(n log n)."""
        self._later.clear()
        for pending in self._pending.values():
            if pending.blocked is None:
                pending.due_at = 0.0
            if not (pending.is_busy or pending.is_ready):
                self.put(pending)

    def plan(self, now: float, window: Window) -> Plan:
        """Take out of the queue what may start now, in order."""
        next_at = self._make_due_ready(now)
        uploads: list[Pending] = []
        while len(uploads) < window.uploads:
            pending = self._next(self._uploads, is_upload=True)
            if pending is None:
                break
            uploads.append(self._take(pending, self._uploads))
        if window.requests_at > now:
            if self._messages:
                next_at = min(next_at, window.requests_at)
            return Plan(uploads, [], next_at)
        return Plan(uploads, self._requests(window), next_at)

    def _requests(self, window: Window) -> list[list[Pending]]:
        """Take the messages that may go now, those that share a request together."""
        requests: list[list[Pending]] = []
        shared: list[Pending] | None = None
        room = 0
        while (pending := self._next(self._messages, is_upload=False)) is not None:
            may_share = window.shares and pending.may_share
            if may_share and shared is not None and len(shared) < SHARED and room > 0:
                shared.append(self._take(pending, self._messages))
                room -= pending.entry.message_bytes
                continue
            if len(requests) >= window.requests:
                break
            request = [self._take(pending, self._messages)]
            requests.append(request)
            if may_share:
                shared, room = request, SHARED_BYTES - pending.entry.message_bytes
        return requests

    def _make_due_ready(self, now: float) -> float:
        """Move what is due to the other heaps; return when the next is."""
        while self._later:
            due_at, seq = self._later[0]
            pending = self._pending.get(seq)
            if pending is None or pending.is_busy or pending.is_ready or pending.due_at != due_at:
                heapq.heappop(self._later)
            elif due_at > now:
                return due_at
            else:
                heapq.heappop(self._later)
                self._make_ready(pending)
        return math.inf

    def _make_ready(self, pending: Pending) -> None:
        """Put a response among those that are due."""
        pending.is_ready = True
        heap = self._uploads if pending.must_upload else self._messages
        heapq.heappush(heap, pending.entry.seq)

    def _next(self, heap: list[int], *, is_upload: bool) -> Pending | None:
        """Return the first response of a heap that still fits it, and leave it there."""
        while heap:
            pending = self._pending.get(heap[0])
            if pending is not None and pending.is_ready and pending.must_upload == is_upload:
                return pending
            heapq.heappop(heap)
        return None

    def _take(self, pending: Pending, heap: list[int]) -> Pending:
        """Take the first of a heap out; it is busy from now on."""
        heapq.heappop(heap)
        pending.is_busy, pending.is_ready = True, False
        return pending
