"""Telling systemd how we are: sd_notify(3), without its library."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


def notify(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send one state, such as `READY=1`. False when nobody asked for it or nobody listens."""
    path = environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as opened:
            opened.sendto(state.encode(), address)
    except OSError:
        return False
    return True


def ready() -> bool:
    """It runs; also the end of a reload."""
    return notify("READY=1")


def reloading() -> bool:
    """It reads its configuration again; `ready` ends it."""
    microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    return notify(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")


def stopping() -> bool:
    """It is about to end."""
    return notify("STOPPING=1")
