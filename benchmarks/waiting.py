"""Responses wait in an agent's spool and cannot be delivered while a benchmark measures.

Their bodies are to be uploaded to a store that takes connections and does not answer, as an object
store in trouble does, while the server itself is well. Nothing is tried again meanwhile, so that
the measured cost is that of waiting. The rows go straight into the agent's own file, whose format
outlives the releases that a benchmark compares; the agent has made it before, and does not run.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final

KNOWN_FORMAT: Final = 1
"""The `user_version` of the spools that this can fill."""
_BODY: Final = json.dumps({"rows": "y" * 286}).encode()


@asynccontextmanager
async def store_that_hangs() -> AsyncIterator[str]:
    """Start a store that never answers, on a free port of this machine; its URL."""
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def fill(agent_directory: Path, count: int, store_url: str) -> None:
    """Put so many responses into the spool. Raises SystemExit when its format is not known."""
    digest = hashlib.sha256(_BODY).hexdigest()
    with closing(sqlite3.connect(_spool(agent_directory))) as db, db:
        [(version,)] = db.execute("PRAGMA user_version").fetchall()
        if version != KNOWN_FORMAT:
            raise SystemExit(f"benchmarks/waiting.py does not know spools of version {version}")
        for _ in range(count):
            name = secrets.token_hex(16)
            (agent_directory / "bodies" / name).write_bytes(_BODY)
            db.execute(
                "INSERT INTO responses (command_id, lease_id, command, attempt, upload,"
                " body, body_bytes, body_sha256, queued_at)"
                " VALUES (?, ?, 'bench.async', 1, ?, ?, ?, ?, ?)",
                (
                    f"cmd_waits{name}",
                    f"lease_{name}",
                    json.dumps(_presigned(f"{store_url}/{name}")).encode(),
                    name,
                    len(_BODY),
                    digest,
                    time.time(),
                ),
            )


def count(agent_directory: Path) -> int:
    """Return how many responses wait in the spool of a running agent."""
    address = f"file:{_spool(agent_directory)}?mode=ro"
    with closing(sqlite3.connect(address, uri=True)) as db:
        [(waiting,)] = db.execute("SELECT count(*) FROM responses").fetchall()
    return waiting


def _spool(agent_directory: Path) -> Path:
    return agent_directory / "spool.db"


def _presigned(url: str) -> dict[str, object]:
    return {
        "backend": {"type": "http", "url": url, "method": "PUT", "headers": {}},
        "expiration": "2100-01-01T00:00:00Z",
        "operation": "put",
        "path": url,
    }
