"""Notifications for systemd, by sd_notify(3) without its library."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from typing import Final

import structlog

from arc_runtime.environment import OWN_ENVIRON

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

FIRST_HANDLE: Final = 3
"""The number of the first file that systemd hands over."""
STATUS_SECONDS: Final = 5.0
"""The least time between two changes of the status line, which people read."""
_FEEDS_PER_WATCHDOG: Final = 4
"""One feed may come late, and the next is still in time."""


def notify(state: str, environ: Mapping[str, str] = OWN_ENVIRON) -> bool:
    """Send one state, such as `READY=1`. Return False when systemd does not listen."""
    path = environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as opened:
            opened.setblocking(False)  # a full queue costs a message, never the event loop's time
            opened.sendto(state.encode(), address)
    except OSError:
        return False
    return True


def ready(status: str = "") -> bool:
    """Notify systemd that the service is ready, or that a reload is over, with a status line."""
    return notify(f"READY=1\nSTATUS={status}" if status else "READY=1")


def reloading() -> bool:
    """Notify systemd that a reload begins; `ready` ends it."""
    microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    return notify(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")


def stopping(within_seconds: float) -> bool:
    """Notify systemd that the service stops, and extend the unit's TimeoutStopSec."""
    return notify(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={round(within_seconds * 1_000_000)}")


def watchdog_seconds(environ: Mapping[str, str] = OWN_ENVIRON) -> float | None:
    """Return within which time the watchdog must be fed; None without one for this process."""
    text = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(text) / 1_000_000 if text.isdecimal() and int(text) > 0 else None


def credential(name: str, environ: Mapping[str, str] = OWN_ENVIRON) -> str | None:
    """Return the path of a credential of this unit (`LoadCredential=`); None without it."""
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    path = os.path.join(directory, name)
    return path if directory and os.path.isfile(path) else None


def inherited_sockets(environ: Mapping[str, str] = OWN_ENVIRON) -> list[socket.socket]:
    """Return the listening sockets that systemd hands to this process (sd_listen_fds(3)).

    Raises ValueError for a file that is no listening stream socket.
    """
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID", "") != str(os.getpid()) or not count.isdecimal():
        return []
    with ExitStack() as opened:
        found = [
            opened.enter_context(_inherited(handle))
            for handle in range(FIRST_HANDLE, FIRST_HANDLE + int(count))
        ]
        opened.pop_all()
    return found


def _inherited(handle: int) -> socket.socket:
    """Return a socket of systemd's. Raises ValueError if it is no listening stream socket."""
    try:
        os.set_inheritable(handle, False)
        found = socket.socket(fileno=handle)
        is_listening = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ValueError(f"file {handle} of systemd: {error.strerror}") from None
    if not is_listening or found.type != socket.SOCK_STREAM:
        found.close()
        raise ValueError(f"file {handle} of systemd is no listening stream socket")
    return found


async def keep_notified(
    trouble: Callable[[], Awaitable[str | None]],
    status: Callable[[], str],
    environ: Mapping[str, str] = OWN_ENVIRON,
) -> None:
    """Feed the watchdog while all is well, and send the status, until cancelled.

    `trouble` returns what stands still, None when nothing does. While it returns a reason, or does
    not return, the watchdog starves and systemd restarts the service. Returns at once when systemd
    does not listen.
    """
    watchdog = watchdog_seconds(environ)
    if not environ.get("NOTIFY_SOCKET"):
        return
    pause = min(STATUS_SECONDS, (watchdog or STATUS_SECONDS) / _FEEDS_PER_WATCHDOG)
    sent, sent_at, is_starving = "", -STATUS_SECONDS, False
    while True:
        reason = await trouble()
        if watchdog is not None and reason is None:
            notify("WATCHDOG=1", environ)
        if (reason is not None) != is_starving:
            is_starving = reason is not None
            if is_starving:
                log.error("watchdog.starves", reason=reason)
            else:
                log.info("watchdog.fed")
        text = status()
        if text != sent and time.monotonic() - sent_at >= STATUS_SECONDS:
            sent, sent_at = text, time.monotonic()
            notify(f"STATUS={text}", environ)
        await asyncio.sleep(pause)
