"""Responses wait in an agent's spool and cannot be delivered while a benchmark measures.

Their submit URL leads to a host that is down for a long time: it answers 503 and asks to be left
alone. The agent tries each once and puts it off, as in a real outage of that host, while the server
itself takes what is new. The rows go straight into the agent's own file, whose format outlives the
releases that a benchmark compares; the agent has made it before, and does not run meanwhile.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final, cast

KNOWN_FORMAT: Final = 1
"""The `user_version` of the spools that this can fill."""
RETRY_AFTER_SECONDS: Final = 300
"""What the host that is down asks for: the most that an agent goes by."""
_END_OF_HEAD: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"
_ANSWER: Final = (
    "HTTP/1.1 503 Service Unavailable\r\n"
    f"Retry-After: {RETRY_AFTER_SECONDS}\r\nContent-Length: 0\r\n\r\n"
).encode()


class HostThatIsDown:
    """A host answers 503 to all, and remembers which responses it was offered."""

    def __init__(self) -> None:
        self.offered: set[bytes] = set()
        """The request lines that came in."""
        self.url = ""

    async def until_offered(self, count: int, seconds: float) -> None:
        """Wait until so many responses were tried. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while len(self.offered) < count:
                await asyncio.sleep(0.1)


class _Refusal(asyncio.Protocol):
    """A connection to the host that is down."""

    def __init__(self, host: HostThatIsDown) -> None:
        self._host = host
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """Answer each request that is complete."""
        self._buffer += data
        while (end := self._buffer.find(_END_OF_HEAD)) >= 0:
            lines = self._buffer[:end].lower().split(b"\r\n")
            lengths = [line.removeprefix(_LENGTH) for line in lines if line.startswith(_LENGTH)]
            size = end + len(_END_OF_HEAD) + int(lengths[0] if lengths else 0)
            if len(self._buffer) < size:
                return
            self._host.offered.add(lines[0])
            self._buffer = self._buffer[size:]
            assert self._transport is not None
            self._transport.write(_ANSWER)


@asynccontextmanager
async def host_that_is_down() -> AsyncIterator[HostThatIsDown]:
    """Start a host that is down, on a free port of this machine."""
    host = HostThatIsDown()
    server = await asyncio.get_running_loop().create_server(lambda: _Refusal(host), "127.0.0.1", 0)
    try:
        host.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield host
    finally:
        server.close()


def fill(spool: Path, count: int, url: str) -> None:
    """Put so many responses into a spool. Raises SystemExit when its format is not known."""
    body = base64.b64encode(json.dumps({"rows": "y" * 286}).encode()).decode()
    message = json.dumps(
        {"status": "success", "response": {"mode": "inline", "inlineBase64": body}}
    ).encode()
    with closing(sqlite3.connect(spool)) as db:
        [(version,)] = db.execute("PRAGMA user_version").fetchall()
        if version != KNOWN_FORMAT:
            raise SystemExit(f"benchmarks/waiting.py does not know spools of version {version}")
        with db:
            db.executemany(
                "INSERT INTO responses"
                " (command_id, lease_id, command, attempt, submit_url, message, queued_at)"
                " VALUES (?, ?, 'bench.async', 1, ?, ?, ?)",
                (
                    (
                        f"cmd_waits{secrets.token_hex(8)}",
                        f"lease_{secrets.token_hex(16)}",
                        f"{url}/responses/{number}",
                        message,
                        time.time(),
                    )
                    for number in range(count)
                ),
            )
