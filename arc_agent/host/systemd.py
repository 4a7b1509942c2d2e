"""What systemd is told of the agent: its status line, and whether its loops move."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from arc_agent.host.pulse import Pulse
from arc_runtime.systemd import keep_notified, ready, reloading, stopping

__all__ = ["ready", "reloading", "status_text", "stopping", "watch"]


async def watch(loops: Mapping[str, Pulse], status: Callable[[], str]) -> None:
    """Feed the watchdog while every loop moves, and tell the status, until cancelled.

    It runs in the same event loop as they do: when that is blocked, nobody feeds either.
    """

    async def trouble() -> str | None:
        stuck = [name for name, pulse in loops.items() if pulse.is_stuck()]
        return f"stuck: {', '.join(stuck)}" if stuck else None

    await keep_notified(trouble, status)


def status_text(
    *, running: int, done: int, waiting: int, answered_seconds_ago: float | None, is_lost: bool
) -> str:
    """`3 running, 120 done, last contact 2 s ago`, as `systemctl status` shows it.

    `waiting` is how many results the server has not taken yet: told when there are any.
    """
    parts = [f"{running} running", f"{done} done"]
    if waiting:
        parts.append(f"{waiting} to deliver")
    if answered_seconds_ago is None:
        parts.append("no contact yet")
    else:
        kind = "no contact for" if is_lost else "last contact"
        ago = "" if is_lost else " ago"
        parts.append(f"{kind} {_span(answered_seconds_ago)}{ago}")
    return ", ".join(parts)


def _span(seconds: float) -> str:
    """A length of time, as exact as anybody wants it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"
