"""The handlers of `make demo` are what a vendor might run on a customer's host."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from arc_agent import CommandFailed, Context, handler


@handler("demo.checksum", description="Size and SHA-256 of the params")
async def checksum(ctx: Context) -> dict[str, Any]:
    """Read the params as a stream: memory does not grow with them."""
    digest, size = hashlib.sha256(), 0
    async for chunk in ctx.open_params():
        digest.update(chunk)
        size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


@handler("demo.export", description="A table of that many rows, as CSV")
async def export(params: dict[str, int]) -> bytes:
    """Return bytes: above the inline limit they go through blob storage."""
    rows = (
        f"{number},customer-{number},{number * 37 % 1000}\n" for number in range(params["rows"])
    )
    return b"id,name,amount\n" + "".join(rows).encode()


@handler("demo.migrate", description="A migration that refuses")
async def migrate(params: dict[str, Any]) -> None:
    """Fail with a code of its own."""
    raise CommandFailed(
        "MIGRATION_REFUSED", f"table {params.get('table')!r} is in use by 3 sessions"
    )


@handler("demo.slow-report", description="Takes a few seconds")
async def slow_report(params: dict[str, float], ctx: Context) -> dict[str, Any]:
    """Run long enough to be killed in the middle, and report progress."""
    ctx.log.info(f"attempt {ctx.attempt}: begun")
    steps = 8
    for step in range(steps):
        ctx.progress(step, steps, f"part {step + 1}")
        await asyncio.sleep(params["seconds"] / steps)
    ctx.log.info(f"attempt {ctx.attempt}: all parts are there")
    return {"report": "done", "attempt": ctx.attempt}
