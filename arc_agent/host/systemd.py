"""Notifications to systemd: the status line, and the watchdog over the agent's loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from arc_agent.host.pulse import Pulse
from arc_runtime.systemd import keep_notified, ready, reloading, stopping

__all__ = ["ready", "reloading", "status_text", "stopping", "watch"]


async def watch(loops: Mapping[str, Pulse], status: Callable[[], str]) -> None:
    """Feed the watchdog while every loop moves, and send the status, until cancelled.

    It runs in the loops' own event loop: a blocked event loop is not fed either.
    """

    async def trouble() -> str | None:
        stuck = [name for name, pulse in loops.items() if pulse.is_stuck()]
        return f"stuck: {', '.join(stuck)}" if stuck else None

    await keep_notified(trouble, status)


def status_text(
    *,
    running: int,
    done: int,
    waiting: int,
    server: str,
    answered_seconds_ago: float | None,
    trouble: tuple[str, datetime] | None,
    is_refused: bool,
) -> str:
    """Return the line of `systemctl status`: `3 running, 120 done, last contact 2 s ago`.

    `waiting` is the number of undelivered responses, left out for 0. `trouble` is the reason why
    there is no contact, and the instant since when.
    """
    parts = [f"{running} running", f"{done} done"]
    if waiting:
        parts.append(f"{waiting} to deliver")
    if trouble is not None:
        reason, since = trouble
        kind = "refused by" if is_refused else "no contact with"
        parts.append(f"{kind} {server} since {since:%Y-%m-%d %H:%M:%S} UTC: {reason}")
    elif answered_seconds_ago is None:
        parts.append(f"connecting to {server}")
    else:
        parts.append(f"last contact {_span(answered_seconds_ago)} ago")
    return ", ".join(parts)


def _span(seconds: float) -> str:
    """Return a length of time, rounded for an operator."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"
