"""A wait for a command's end goes by long poll, or by a request now and then."""

# ruff: noqa: ASYNC109  # this time-out ends a wait and nothing else: the command goes on

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final

from arc_client.errors import CommandTimeout
from arc_client.wire.connection import SenderConnection
from arc_client.wire.progress_callbacks import ProgressCallbacks
from arc_client.wire.retry import (
    INTERVAL_CAP_SECONDS,
    Intervals,
    WaitClock,
    is_transient,
    pause_after,
)
from arc_client.wire.waiting_reasons import reason_of
from arc_protocol.errors import ArcError
from arc_protocol.lifecycle import TERMINAL
from arc_protocol.messages.commands import CommandStatus
from arc_protocol.messages.waiting import NOTHING_KNOWN
from arc_runtime.durations import format_duration

POLL_SECONDS: Final = 30
"""The time for which one status request asks to be held by default: less than the 60 s that
proxies cut off at."""
ANSWER_SECONDS: Final = 10.0
"""The time that the answer may take beyond that."""

_HELD: Final = 0.8
"""A server that holds a request for this part of the time that was asked for does long polls; one
that answers sooner is asked again after a pause."""
_OVERTIME_SECONDS: Final = 1.0
"""The time by which the last request of a wait may pass the wait's end."""


async def read_status(
    connection: SenderConnection,
    command_id: str,
    *,
    wait_seconds: int = 0,
    known_tag: str | None = None,
    limit_seconds: float,
) -> CommandStatus:
    """Return a command's status; the server holds the request until the command has ended.

    With `known_tag` it answers, too, when the command waits for another reason than that.
    """
    query = {"waitSeconds": wait_seconds, "waiting": known_tag} if wait_seconds else None
    url = connection.url("commands", command_id, query=query)
    return await connection.call("GET", url, CommandStatus, limit_seconds=limit_seconds)


async def wait_for_end(
    connection: SenderConnection,
    command_id: str,
    *,
    timeout: float | None,
    waited_seconds: float = 0,
    poll_seconds: int,
    clock: WaitClock,
    callbacks: ProgressCallbacks,
    on_absent: Callable[[str], Awaitable[None]] | None = None,
) -> CommandStatus:
    """Return the status of a command once it is terminal.

    `waited_seconds` of the time-out have passed before. `on_absent` is called with the reason when
    it is certain that no agent is there to take the command; what it raises ends the wait.

    A request that fails in passing does not end the wait, and the status is read a last time when
    the time is over. `callbacks` learn of each reason for which the command waits. Raises
    CommandTimeout, and what the server refuses for good.
    """
    ends_at = math.inf if timeout is None else clock.monotonic() + timeout - waited_seconds
    intervals = Intervals()
    status: CommandStatus | None = None
    known_tag = NOTHING_KNOWN
    while True:
        asked_at = clock.monotonic()
        remaining = max(0.0, ends_at - asked_at)
        wait_seconds = int(min(poll_seconds, remaining))
        problem: ArcError | None = None
        is_news = False
        try:
            status = await read_status(
                connection,
                command_id,
                wait_seconds=wait_seconds,
                known_tag=known_tag,
                limit_seconds=min(wait_seconds + ANSWER_SECONDS, remaining + _OVERTIME_SECONDS),
            )
        except ArcError as error:
            if not _may_pass(error):
                raise
            problem = error
            callbacks.on_retry(error)
        else:
            tag = NOTHING_KNOWN if status.waiting is None else status.waiting.tag
            is_news, known_tag = tag != known_tag, tag
            callbacks.on_status(status)
            if status.state in TERMINAL:
                return status
            if is_news:
                callbacks.on_waiting(status)
                if on_absent is not None and status.waiting and status.waiting.is_absent:
                    await on_absent(reason_of(status) or "no agent is there")
        took = clock.monotonic() - asked_at
        remaining = ends_at - clock.monotonic()
        if remaining <= 0:
            raise _timed_out(command_id, timeout, status, problem) from problem
        is_held = wait_seconds > 0 and (is_news or took >= _HELD * wait_seconds)
        if is_held or took >= INTERVAL_CAP_SECONDS:  # cut off on the way, after a good while
            intervals.reset()
        if problem is not None or not is_held:
            await clock.sleep(min(max(intervals.next(), pause_after(problem)), remaining))


def _may_pass(error: ArcError) -> bool:
    """Return True if a failure need not be the server's last word on this command.

    An answer without an ARC error body comes from something in front of the server, which answers
    like that while the server is being replaced.
    """
    return is_transient(error) or not error.context.get("is_ours", False)


def _timed_out(
    command_id: str, timeout: float | None, status: CommandStatus | None, problem: ArcError | None
) -> CommandTimeout:
    """Return the error of a wait that ran out, with the status that was last read."""
    stands = f"is still {status.state}" if status else "is not done as far as is known"
    reason = reason_of(status) if status else None
    why = f": {reason}" if reason else ""
    asked = f"; the server could not be asked at the end: {problem.message}" if problem else ""
    return CommandTimeout(
        f"command {command_id} {stands} after {format_duration(timeout or 0)}{why}{asked}",
        command_id=command_id,
        state=status.state if status else None,
        waiting=status.waiting if status else None,
    )
