"""The command that docs/operating.md sees at work; its second run is done at once."""

import asyncio
from pathlib import Path

from arc_agent import Context, handler


@handler("tables.load")
async def load(ctx: Context) -> None:
    ctx.progress(3, 10, "tables")
    if not Path("has-run").exists():
        Path("has-run").touch()
        await asyncio.to_thread(Path("begun").write_text, "\n")
        await asyncio.Event().wait()
