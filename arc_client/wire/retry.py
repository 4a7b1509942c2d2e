"""Retries and intervals decide when a request is sent again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from arc_client.errors import ServerUnreachable
from arc_protocol.errors import ArcError
from arc_protocol.lifecycle import full_jitter

T = TypeVar("T")

BACKOFF_SECONDS: Final = 0.2
"""The first back-off is up to this long; each later one up to twice the one before."""
BACKOFF_CAP_SECONDS: Final = 5.0
FIRST_INTERVAL_SECONDS: Final = 0.5
"""The public senders read the status again after 0.5 s, and slow down by half each time to 5 s."""
INTERVAL_FACTOR: Final = 1.5
INTERVAL_CAP_SECONDS: Final = 5.0

_TRANSIENT_STATUSES: Final = frozenset({408, 425, 429})
_PERMANENT_STATUSES: Final = frozenset({501, 505})
_JITTER: Final = random.Random()  # noqa: S311  # spreads load, keeps no secret


class WaitClock(Protocol):
    """A wait clock is monotonic, and sleeps: the wall clock jumps."""

    def monotonic(self) -> float:
        """Return seconds since some fixed moment."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after that many seconds."""
        ...


class SystemWaitClock:
    """The system wait clock is the machine's own monotonic clock."""

    def monotonic(self) -> float:
        """Return seconds since some fixed moment."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Return after that many seconds."""
        await asyncio.sleep(seconds)


class Intervals:
    """Intervals are the sleeps between requests to a server that does not hold them: 0.5 to 5 s."""

    def __init__(self) -> None:
        self._next = FIRST_INTERVAL_SECONDS

    def next(self) -> float:
        """Return the next sleep, in seconds; each is longer than the one before, up to the cap."""
        seconds = self._next
        self._next = min(INTERVAL_CAP_SECONDS, seconds * INTERVAL_FACTOR)
        return seconds

    def reset(self) -> None:
        """Begin again with the shortest."""
        self._next = FIRST_INTERVAL_SECONDS


def is_transient(error: BaseException) -> bool:
    """Return True if a later request may well succeed: no answer, 408, 429 or 5xx.

    A final code of the protocol counts in any status: public servers answer
    COMMAND_TARGET_NOT_FOUND with 500.
    """
    if isinstance(error, ServerUnreachable):
        return True
    if not isinstance(error, ArcError):
        return False
    status = error.context.get("status")
    is_known = error.context.get("server_code") == error.code
    if not isinstance(status, int) or (is_known and not error.retryable):
        return False
    return status in _TRANSIENT_STATUSES or (status >= 500 and status not in _PERMANENT_STATUSES)


def pause_after(error: BaseException | None) -> float:
    """Return how many seconds the server asked for with `Retry-After`; 0 without one."""
    seconds = error.context.get("retry_after") if isinstance(error, ArcError) else None
    return float(seconds) if isinstance(seconds, int | float) else 0.0


async def retried(
    work: Callable[[], Awaitable[T]],
    *,
    clock: WaitClock,
    until: float,
    should_retry: Callable[[BaseException], bool] = is_transient,
    tries: int | None = None,
    on_retry: Callable[[ArcError], None] | None = None,
) -> T:
    """Do `work` until it succeeds, fails for good, or the next try would come after `until`.

    Sleeps with full jitter, and at least as long as a `Retry-After` says. `on_retry` is called
    before each sleep. The last error is raised as it is.
    """

    def error_of(state: RetryCallState) -> BaseException | None:
        return state.outcome.exception() if state.outcome else None

    def wait(state: RetryCallState) -> float:
        backoff = full_jitter(
            state.attempt_number - 1,
            base_seconds=BACKOFF_SECONDS,
            cap_seconds=BACKOFF_CAP_SECONDS,
            source=_JITTER,
        )
        return max(backoff, pause_after(error_of(state)))

    def stop(state: RetryCallState) -> bool:
        if tries is not None and state.attempt_number >= tries:
            return True
        return clock.monotonic() + state.upcoming_sleep > until

    def before_sleep(state: RetryCallState) -> None:
        error = error_of(state)
        if on_retry is not None and isinstance(error, ArcError):
            on_retry(error)

    # The first try goes without tenacity, which costs more than the request itself (117 µs of
    # 245). Only a failure is handed to it, as the outcome of its first attempt.
    try:
        return await work()
    except Exception as error:
        first: Exception | None = error

    async def again() -> T:
        nonlocal first
        if first is not None:
            error, first = first, None
            raise error
        return await work()

    return await AsyncRetrying(
        sleep=clock.sleep,
        wait=wait,
        stop=stop,
        retry=retry_if_exception(should_retry),
        before_sleep=before_sleep,
        reraise=True,
    )(again)
