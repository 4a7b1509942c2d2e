"""Servers of tests that stop leave no connection behind.

A server gets to know a connection some turns of the loop after it was accepted; one whose listener
closes in between stays open, and is an unclosed transport in whichever test it is collected.
"""

from __future__ import annotations

import asyncio
from typing import cast

from aiohttp import web

from tests.support.waiting import settle


async def stop_accepting(server: asyncio.Server) -> None:
    """Close a listener once its server knows every connection that was accepted."""
    loop = asyncio.get_running_loop()
    for listening in server.sockets:
        loop.remove_reader(listening.fileno())
    await settle()
    server.close()


async def stop_serving(runner: web.BaseRunner) -> None:
    """Stop a server of aiohttp and close all of its connections."""
    for site in list(runner.sites):
        await stop_accepting(cast("asyncio.Server", getattr(site, "_server")))  # noqa: B009
    await runner.cleanup()
