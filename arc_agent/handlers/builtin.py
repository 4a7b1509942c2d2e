"""The handlers that every agent has: for a first test, and to see the host."""

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
    """Answer at once."""
    return {"pong": True, "attempt": ctx.attempt}


@handler("arc.echo", description="Answers with its params, byte for byte")
async def echo(ctx: Context) -> AsyncIterator[bytes]:
    """Send the params back, of any size."""
    return aiter(ctx.open_params())


@handler("arc.system-info", description="Describes this host")
def system_info() -> dict[str, Any]:
    """Describe the host, without facts that a sender must not know."""
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
