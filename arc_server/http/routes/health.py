"""Routes of health checks, for supervisors and load balancers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from aiohttp import web

from arc_protocol.errors import Unavailable
from arc_server.disk_room import DiskLevel, DiskRoom
from arc_server.http.answers import json_answer
from arc_server.http.calls import Call
from arc_server.http.routing import Route
from arc_server.ports.store import StoreHealth

CHECK_SECONDS: Final = 5.0
"""A database that takes longer than this to answer is not ready."""


def routes(
    store: StoreHealth, is_stopping: Callable[[], bool], room: DiskRoom | None = None
) -> Sequence[Route]:
    """Return `/healthz` (the process lives) and `/readyz` (the database answers).

    While the disk fills up, `/readyz` names the level. It is 507 once nothing new is taken in.
    """

    async def alive(_: Call) -> web.StreamResponse:
        return json_answer({"status": "ok"})

    async def ready(_: Call) -> web.StreamResponse:
        if is_stopping():
            raise Unavailable("the server is stopping")
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await store.check()
        except TimeoutError:
            raise Unavailable("the database does not answer") from None
        if room is None or room.level is DiskLevel.OK:
            return json_answer({"status": "ready"})
        room.check(DiskLevel.CRITICAL)
        return json_answer({"status": "ready", "disk": room.level.name.lower()})

    return (
        Route(method="GET", path="/healthz", handler=alive, is_versioned=False),
        Route(method="GET", path="/readyz", handler=ready, is_versioned=False),
    )
