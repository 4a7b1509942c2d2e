"""Handlers that do on purpose what others do by accident. Imported by agents, not by tests.

Each leaves a note of its run in the directory `TEST_NOTES`: what no process can take back later.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from arc_agent import Context, handler
from tests.support.octets import (  # beside this file; agents are given `handlers.path`
    octets,
    octets_in_time,
)

NOTES = Path(os.environ["TEST_NOTES"])
AGENT = os.environ["TEST_AGENT"]


def note(ctx: Context, what: str, **more: Any) -> str:
    """Append a line about this run, whole or not at all; the run's own id."""
    run = uuid.uuid4().hex
    facts = {"command_id": ctx.command_id, "attempt": ctx.attempt, "agent": AGENT}
    line = json.dumps({"what": what, "run": run, "at": time.time(), **facts, **more}) + "\n"
    descriptor = os.open(NOTES / "runs", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
    return run


@handler("count")
async def count(params: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Answer with the number that came, and which run this was."""
    run = note(ctx, "started")
    await asyncio.sleep(0.005)
    note(ctx, "finished")
    return {"n": params["n"], "run": run, "agent": AGENT}


@handler("once", idempotent=False)
async def once(params: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Run as the other one does; not idempotent."""
    return await count(params, ctx)


@handler("hold")
async def hold(params: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Run until the test opens the gate, for all agents or for this one."""
    note(ctx, "started")
    gates = [NOTES / f"gate-{params['gate']}", NOTES / f"gate-{params['gate']}-{AGENT}"]
    try:
        while not any(gate.exists() for gate in gates):
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        note(ctx, "cancelled")
        raise
    note(ctx, "finished")
    return {"agent": AGENT, "attempt": ctx.attempt}


@handler("sleep")
async def sleep(params: dict[str, Any], ctx: Context) -> None:
    """Take that long."""
    note(ctx, "started")
    await asyncio.sleep(params["seconds"])
    note(ctx, "finished")


@handler("block")
async def block(params: dict[str, Any], ctx: Context) -> None:
    """Take that long and let nothing else run in the event loop meanwhile."""
    note(ctx, "started")
    time.sleep(params["seconds"])
    note(ctx, "finished")


@handler("spin")
def spin(params: dict[str, Any], ctx: Context) -> None:
    """Keep a thread busy that long, hungry for the interpreter's lock."""
    note(ctx, "started")
    until = time.monotonic() + params["seconds"]
    while time.monotonic() < until:
        sum(range(1000))
    note(ctx, "finished")


@handler("stubborn")
async def stubborn(params: dict[str, Any], ctx: Context) -> None:
    """Run that long, even if cancelled."""
    note(ctx, "started")
    until = time.monotonic() + params["seconds"]
    while time.monotonic() < until:
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            note(ctx, "cancelled")
    note(ctx, "finished")


@handler("die")
async def die(params: dict[str, Any], ctx: Context) -> None:
    """Take the whole agent down."""
    note(ctx, "started")
    os._exit(params["code"])


@handler("blob")
async def blob(ctx: Context) -> AsyncIterator[bytes]:
    """Read params of any size; answer with as many bytes as their first line asks for."""
    size, seed = await read_request(ctx)
    return octets_in_time(size, seed)


@handler("blob-file")
async def blob_file(ctx: Context) -> Path:
    """Return the bytes by way of a file."""
    size, seed = await read_request(ctx)
    path = ctx.directory / "answer"

    def write() -> None:
        with path.open("wb") as file:
            for chunk in octets(size, seed):
                file.write(chunk)

    await asyncio.to_thread(write)
    return path


async def read_request(ctx: Context) -> tuple[int, int]:
    """Take the params in, note their digest; the size and the seed that they ask for."""
    digest = hashlib.sha256()
    length = 0
    first = b""
    async for chunk in ctx.open_params():
        first = first or chunk
        digest.update(chunk)
        length += len(chunk)
    note(ctx, "started", length=length, sha256=digest.hexdigest())
    size, seed = first.split(b"\n", 1)[0].split()
    return int(size), int(seed)
