"""The endpoint for monitoring systems (`metrics.listen`): GET /metrics, /healthz and /readyz.

It has a listener of its own, and a scrape does not hold the event loop up: the text is made in a
thread, once a second at most, however many ask.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import hdrs, web

from arc_protocol.errors import ArcError
from arc_runtime import sqlite_version
from arc_runtime.startup.late_module import late_module
from arc_server.http.answers import error_answer, json_answer
from arc_server.http.listening import Listener
from arc_server.http.routes.health import Readiness
from arc_server.metrics.families import families
from arc_server.metrics.gauges import Gauges, Sources, read_files, read_gauges
from arc_server.metrics.loop_lag import LoopLag
from arc_server.metrics.meter import CountingMeter

if TYPE_CHECKING:
    from importlib import metadata

    import prometheus_client as prometheus
    from prometheus_client import core
else:
    metadata = late_module("importlib.metadata")
    prometheus = late_module("prometheus_client")  # 3.6 MiB

log = structlog.get_logger(__name__)

KEPT_SECONDS: Final = 1.0
"""The time for which a text is given out again."""
_CLOSE_SECONDS: Final = 0.5
"""The time limit for answers under way when the server ends."""


class MetricsEndpoint:
    """The listener, and the text that it gives out. For the event loop only."""

    def __init__(self, meter: CountingMeter, sources: Sources, readiness: Readiness) -> None:
        """Read figures from a meter and from parts of the server."""
        self._meter = meter
        meter.expect((route.path, route.method) for route in sources.http.routes)
        self._sources = sources
        self._readiness = readiness
        self._gauges: Gauges = {}
        self._facts = {"build_info": _build(), "epoch_info": {"epoch": sources.epoch.id}}
        self._registry = prometheus.CollectorRegistry()
        self._registry.register(self)  # pyright: ignore[reportArgumentType]  # it has `collect`
        prometheus.ProcessCollector(registry=self._registry)
        self._lag = LoopLag()
        self._turn = asyncio.Lock()
        self._text = b""
        self._made_at = float("-inf")
        self._server: web.AppRunner | None = None

    def collect(self) -> Iterator[core.Metric]:
        """Yield every figure, for the registry."""
        return families(self._meter, self._gauges, self._facts)

    async def open(self, listener: Listener) -> None:
        """Serve on a bound socket."""
        app = web.Application(client_max_size=1024)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        self._server = web.AppRunner(
            app, access_log=None, keepalive_timeout=15.0, shutdown_timeout=_CLOSE_SECONDS
        )
        await self._server.setup()
        await web.SockSite(self._server, listener.socket).start()
        log.info("metrics.listening", url=f"{listener.url(is_tls=False)}/metrics")

    async def close(self) -> None:
        """Close the listener, and end the probe of the event loop."""
        self._lag.close()
        if self._server is not None:
            await self._server.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        async with self._turn:
            if time.monotonic() - self._made_at >= KEPT_SECONDS:
                self._gauges = await read_gauges(self._sources, self._lag)
                self._text = await asyncio.to_thread(self._generate)
                self._made_at = time.monotonic()
            return web.Response(
                body=self._text, headers={hdrs.CONTENT_TYPE: prometheus.CONTENT_TYPE_LATEST}
            )

    async def _healthz(self, _: web.Request) -> web.Response:
        return json_answer({"status": "ok"})

    async def _readyz(self, _: web.Request) -> web.Response:
        try:
            return json_answer(await self._readiness.check())
        except ArcError as error:
            return error_answer(error)

    def _generate(self) -> bytes:
        """Make the text. Blocks."""
        self._gauges = {**self._gauges, **read_files(self._sources.store.database.path)}
        return prometheus.generate_latest(self._registry)


def _build() -> Mapping[str, str]:
    """Return the versions that matter to the owner of a server."""
    return {
        "version": metadata.version("arc-commands"),
        "python": ".".join(map(str, sys.version_info[:3])),
        "sqlite": ".".join(map(str, sqlite_version.version())),
    }
