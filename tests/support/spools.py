"""A spool with a disk thread of its own, for tests of one part of an agent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from arc_agent.config.sections import SpoolSection
from arc_agent.host.data_dir import DataDir
from arc_agent.host.disk_thread import DiskThread
from arc_agent.jobs.spool import Spool

ROOMY = SpoolSection(min_free_bytes=0)


@asynccontextmanager
async def opened_spool(data_dir: DataDir, settings: SpoolSection = ROOMY) -> AsyncIterator[Spool]:
    """Open a spool, and close it in the end."""
    async with DiskThread() as disk:
        spool = await Spool.open(data_dir, settings, disk)
        yield spool
        await spool.close()
