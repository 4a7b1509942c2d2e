"""The sender of the end-to-end benchmark is arc_client in a process of its own.

It reads one job a line from standard input and prints one answer a line. It runs with the Python of
the programs that are measured, so it imports nothing of this repository.

    DIR/python benchmarks/sender.py URL DEPLOYMENT TOKEN_FILE
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from arc_client import Client

PARAMS = {"rows": 1204}


async def run(client: Client, deployment: str, job: dict[str, Any]) -> dict[str, Any]:
    """Invoke in `at_once` tasks until `seconds` are over or `count` are done."""
    latencies: list[float] = []
    begun = time.perf_counter()
    until = begun + job["seconds"]
    left = iter(range(job["count"])) if job["count"] else None

    async def invoke() -> None:
        while time.perf_counter() < until:
            if left is not None and next(left, None) is None:
                return
            began = time.perf_counter()
            await client.invoke(deployment, job["command"], PARAMS)
            latencies.append(time.perf_counter() - began)
            if job["pause"]:
                await asyncio.sleep(job["pause"])

    async with asyncio.TaskGroup() as group:
        for _ in range(job["at_once"]):
            group.create_task(invoke())
    return {"took": time.perf_counter() - begun, "latencies": latencies}


async def main() -> None:
    """Do the jobs that come in, until standard input ends."""
    _, url, deployment, token_file = sys.argv
    async with Client(url, token_file=token_file) as client:
        while line := await asyncio.to_thread(sys.stdin.readline):
            answer = await run(client, deployment, json.loads(line))
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
