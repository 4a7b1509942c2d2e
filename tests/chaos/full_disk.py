"""A program that lives through a full disk; test_disk_faults.py runs it on a small one of its own.

It fills the disk with commands, kills the server, has another program take the rest, starts the
server on the full disk, and purges. It prints what it saw as JSON, or fails.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

import aiohttp

from tests.chaos.data_directory_audit import audit
from tests.support.processes import BIN, Process
from tests.support.world import free_port

BALLAST_BYTES = 24 << 20
PARAMS = bytes(100_000)
SENDERS, AGENTS = 2, 1
SETTINGS = {
    "ARC_SERVER_DISK_BALLAST_BYTES": str(BALLAST_BYTES),
    "ARC_SERVER_DISK_CHECK_SECONDS": "0.05",
}


class FullDisk:
    """One data directory on a small disk, and what was acknowledged for it."""

    def __init__(self, directory: Path) -> None:
        self.data_dir = directory / "data"
        self._foreign = directory / "foreign"
        self._port = free_port()
        self._url = f"http://127.0.0.1:{self._port}"
        self.created: dict[str, str] = {}
        """By key, the commands whose create was acknowledged."""
        self.ended: set[str] = set()
        self._number = 0
        self._session: Any = None
        self._process: Process | None = None

    async def start(self) -> Process:
        process = await Process.start(
            "server",
            "arc-server",
            *("serve", "--no-auth", "--data-dir", str(self.data_dir)),
            *("--listen", f"127.0.0.1:{self._port}"),
            env=SETTINGS,
        )
        self._process = process
        await process.url()
        return process

    async def put_away(self) -> None:
        """End the server that is left when something fails."""
        if self._process is not None:
            await self._process.put_away()

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        url = self._url + path
        async with self._session.request(method, url, json=body) as answer:
            data = await answer.read()
            return answer.status, json.loads(data) if data else None

    async def create(self) -> int:
        self._number += 1
        key = f"key-{self._number}"
        status, answer = await self.call(
            "POST",
            "/v1/commands",
            {
                "deploymentId": "site-1",
                "command": "report",
                "params": {"mode": "inline", "inlineBase64": base64.b64encode(PARAMS).decode()},
                "idempotencyKey": key,
            },
        )
        if status == 200:
            self.created[key] = answer["commandId"]
        else:
            assert (status, answer["code"]) == (507, "INSUFFICIENT_STORAGE"), answer
        return status

    async def work(self, most: int = 5) -> int:
        """Lease and end up to `most` commands; return how many were leased."""
        body = {"deploymentId": "site-1", "maxLeases": most}
        status, answer = await self.call("POST", "/v1/commands/leases", body)
        if status != 200:
            return 0
        for lease in answer["leases"]:
            result = base64.b64encode(b"{}").decode()
            body = {
                "status": "success",
                "response": {"mode": "inline", "inlineBase64": result},
            }
            path = f"/v1/commands/{lease['commandId']}/response"
            status, _ = await self.call("PUT", path, body)
            if status == 200:
                self.ended.add(lease["commandId"])
        return len(answer["leases"])

    async def fill_under_load(self) -> None:
        """Create and end commands until the server takes no more."""
        is_full = asyncio.Event()

        async def sender() -> None:
            while await self.create() == 200:
                pass
            is_full.set()

        async def agent() -> None:
            while not is_full.is_set():
                await self.work()

        await asyncio.gather(*(sender() for _ in range(SENDERS)), *(agent() for _ in range(AGENTS)))

    def take_the_rest(self) -> int:
        """Let another program take all room that is left."""
        taken = 0
        with self._foreign.open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12):
                try:
                    while written := file.write(bytes(size)):
                        taken += written
                except OSError:
                    continue
        return taken

    async def readiness(self) -> str:
        status, answer = await self.call("GET", "/readyz")
        return "critical" if status == 507 else answer.get("disk", "ok")

    async def at(self, *levels: str) -> str:
        """Wait until the server is at one of the levels."""
        found = ""
        for _ in range(600):
            found = await self.readiness()
            if found in levels:
                return found
            await asyncio.sleep(0.05)
        raise AssertionError(f"{found}, not {levels}")

    async def check_all_there(self, *, but: set[str] | None = None) -> None:
        """Read every command that was acknowledged."""
        for command_id in self.created.values():
            status, answer = await self.call("GET", f"/v1/commands/{command_id}")
            if command_id in (but or set()):
                assert status == 404, command_id
                continue
            assert status == 200, (command_id, answer)
            if command_id in self.ended:
                assert answer["state"] == "SUCCEEDED", answer

    async def purge(self) -> dict[str, Any]:
        purging = await asyncio.create_subprocess_exec(
            str(BIN / "arc-server"),
            *("purge", "--older-than", "0", "--json", "--data-dir", str(self.data_dir)),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await purging.communicate()
        assert purging.returncode == 0, self.state()
        return json.loads(out)

    def state(self) -> str:
        """Return what lies in the data directory, and the room beside it."""
        files = {each.name: each.stat().st_size for each in self.data_dir.iterdir()}
        room = os.statvfs(self.data_dir)
        return f"{files}, {room.f_bavail * room.f_frsize} bytes free"

    async def live(self) -> dict[str, Any]:
        """Live through it; return figures."""
        server = await self.start()
        async with aiohttp.ClientSession() as self._session:
            await self.fill_under_load()
            level = await self.at("hard")
            went_on = await self.work(most=1)
            before = dict(self.created)
            server.kill()
            await server.ended()
            taken = self.take_the_rest()
            free = os.statvfs(self.data_dir).f_bavail

            server = await self.start()
            await self.at("critical")
            assert await self.create() == 507
            await self.check_all_there()
            status, _ = await self.call("GET", "/v1/commands?limit=10")
            assert status == 200
            ended = set(self.ended)
            purged = await self.purge()
            await self.at("soft", "ok")
            again = [await self.create() for _ in range(20)]
            await self.check_all_there(but=ended)
            self._foreign.unlink()
            await self.at("soft", "ok")  # the database is as large as before
            while await self.work(most=50):
                pass
            await self.check_all_there(but=ended)
        server.terminate()
        assert await server.ended() == 0, server.tail()
        # A key of today outlives a command that was purged.
        found = [each for each in audit(self.data_dir) if "every key has its command" not in each]
        assert found == [], found
        return {
            "acknowledged": len(before),
            "level": level,
            "went_on": went_on,
            "taken": taken,
            "free": free,
            "ended": len(ended),
            "purged": purged["commands"],
            "again": again,
        }


async def main(directory: Path) -> None:
    """Live through a full disk, and leave no server behind."""
    disk = FullDisk(directory)
    try:
        print(json.dumps(await disk.live()))
    finally:
        await disk.put_away()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
