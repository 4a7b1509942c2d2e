"""Handlers that every agent has: to see that it is there, and what it runs on."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from arc_agent.handlers.context import Context
from arc_agent.handlers.registry import handler


@handler("arc.ping", description="Answers at once")
async def ping(ctx: Context) -> dict[str, Any]:
    """Say that the agent is there."""
    return {"pong": True, "attempt": ctx.attempt}


@handler("arc.echo", description="Answers with its params, byte for byte")
async def echo(ctx: Context) -> AsyncIterator[bytes]:
    """Send the params back, whatever their size."""
    return aiter(ctx.open_params())


@handler("arc.system-info", description="What this host is")
def system_info() -> dict[str, Any]:
    """Say what the agent runs on; nothing that a sender could not guess or must not know."""
    uname = os.uname()
    return {
        "hostname": uname.nodename,
        "system": uname.sysname,
        "release": uname.release,
        "machine": uname.machine,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "uptime_seconds": round(time.clock_gettime(time.CLOCK_BOOTTIME)),
    }
