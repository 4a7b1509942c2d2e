"""A server that is killed again and again, always on the same data and the same port."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.processes import BIN, Process
from tests.support.world import free_port

SETTINGS: Mapping[str, Any] = {
    "commands": {"inline_bytes": 500},  # bodies move to blob storage without being large
    "leases": {"outage_grace_seconds": 1.0},
    "sweeper": {"interval_seconds": 0.1},
}


class KilledServer:
    """One data directory, one server process after another."""

    def __init__(self, directory: Path) -> None:
        self.data_dir = directory / "data"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.is_up = asyncio.Event()
        self.starts = 0
        self.said: list[str] = []
        """Everything that its processes have logged."""
        self._config = directory / "server.yaml"
        self._config.write_text(json.dumps(SETTINGS))  # JSON is YAML
        self._process: Process | None = None

    async def start(
        self, env: Mapping[str, str] | None = None, *, memory_bytes: int | None = None
    ) -> Process:
        """Start it, or start it again; it serves when this returns.

        `memory_bytes`: its data directory is a file system of that size, that it alone sees (and
        this process through `inside`), and that ends with it.
        """
        self.starts += 1
        program = ["arc-server"]
        if memory_bytes is not None:
            self.data_dir.mkdir()
            mount = f"mount -t tmpfs -o size={memory_bytes} none {self.data_dir}"
            program = ["/usr/bin/unshare", "-Urm", "sh", "-c", f'{mount} && exec "$@"', "sh"]
            program.append(str(BIN / "arc-server"))
        self._process = process = await Process.start(
            f"server-{self.starts}",
            *program,
            *("serve", "--no-auth", "--config", str(self._config)),
            *("--data-dir", str(self.data_dir), "--listen", f"127.0.0.1:{self.port}"),
            env=env,
        )
        await process.url()
        self.is_up.set()
        return process

    @property
    def inside(self) -> Path:
        """The data directory as the process itself sees it."""
        assert self._process is not None
        return Path(f"/proc/{self._process.pid}/root{self.data_dir}")

    async def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self.is_up.clear()
        await self.died()

    async def died(self, code: int = -9) -> None:
        """Wait until it is dead, by SIGKILL unless another exit code is expected."""
        assert self._process is not None
        found = await self._ended()
        self.is_up.clear()
        assert found == code, self._process.tail()

    async def stop(self) -> None:
        """SIGTERM, and a good end."""
        assert self._process is not None
        self._process.terminate()
        assert await self._ended() == 0, self._process.tail()

    async def _ended(self) -> int:
        """Wait for its end; its exit code, and its log for those who want to know."""
        assert self._process is not None
        code = await self._process.ended()
        self.said += [
            f"{event['seen_at']:.3f} {self._process.name}: {event}" for event in self._process.log
        ]
        return code

    async def put_away(self) -> None:
        """Kill the process if it still runs."""
        if self._process is not None:
            await self._process.put_away()
