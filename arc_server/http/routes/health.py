"""Routes of health checks, for supervisors and load balancers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from aiohttp import web

from arc_protocol.errors import Unavailable
from arc_server.disk_room import DiskLevel, DiskRoom
from arc_server.http.answers import json_answer
from arc_server.http.calls import Call
from arc_server.http.routing import Route
from arc_server.ports.store import StoreHealth
from arc_server.service.announcements import Announcements

CHECK_SECONDS: Final = 5.0
"""A database that takes longer than this to answer is not ready."""


class Readiness:
    """Readiness: the database answers, and the disk has room."""

    def __init__(self, store: StoreHealth, announcements: Announcements, room: DiskRoom) -> None:
        self._store = store
        self._announcements = announcements
        self._room = room

    async def check(self) -> Mapping[str, str]:
        """Return that the server is ready; while the disk fills up, name the level.

        Raises Unavailable, InsufficientStorage once nothing new is taken in.
        """
        if self._announcements.is_closed:
            raise Unavailable("the server is stopping")
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await self._store.check()
        except TimeoutError:
            raise Unavailable("the database does not answer") from None
        if self._room.level is DiskLevel.OK:
            return {"status": "ready"}
        self._room.check(DiskLevel.CRITICAL)
        return {"status": "ready", "disk": self._room.level.name.lower()}


def routes(readiness: Readiness) -> Sequence[Route]:
    """Return `/healthz` (the process lives) and `/readyz`."""

    async def alive(_: Call) -> web.StreamResponse:
        return json_answer({"status": "ok"})

    async def ready(_: Call) -> web.StreamResponse:
        return json_answer(await readiness.check())

    return (
        Route(method="GET", path="/healthz", handler=alive, is_versioned=False),
        Route(method="GET", path="/readyz", handler=ready, is_versioned=False),
    )
