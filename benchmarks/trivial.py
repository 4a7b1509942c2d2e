"""The trivial route of a server is the unit of a run.

`GET /healthz` does nothing, so its CPU time tells how fast this machine is at this moment with this
server's HTTP. What a command costs is quoted in such requests, and a rate as a share of its rate.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from benchmarks.connection import Connection
from benchmarks.programs import Process

CONNECTIONS: Final = 64
"""Enough to keep the server busy without a pause. One alone costs it twice the CPU a request."""


@dataclass(frozen=True)
class Trivial:
    """A measurement of the trivial route."""

    per_second: float
    cpu_micros: float
    """The server's CPU time for one request."""


async def measure(url: str, server: Process, seconds: float, at_once: int = CONNECTIONS) -> Trivial:
    """Drive the trivial route for so long over so many connections."""
    connections = [await Connection.open(url) for _ in range(at_once)]
    count = 0
    begun, used = time.perf_counter(), server.cpu_seconds
    until = begun + seconds

    async def drive(connection: Connection) -> None:
        nonlocal count
        while time.perf_counter() < until:
            status, _ = await connection.request("GET", "/healthz")
            if status != 200:
                raise SystemExit(f"the trivial route answered {status}")
            count += 1

    await asyncio.gather(*map(drive, connections))
    took, used = time.perf_counter() - begun, server.cpu_seconds - used
    for connection in connections:
        connection.close()
    return Trivial(count / took, used / count * 1e6)
