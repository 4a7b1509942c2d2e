"""The endpoint for monitoring systems (`metrics.listen`): GET /healthz, /readyz and /metrics.

Without `metrics.listen` this module is not imported, and neither is prometheus_client. The figures
hold no secrets: the name of a command appears only if a handler has it. docs/operating.md lists
the figures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Final

import structlog
from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from arc_agent.config.addresses import listen_address
from arc_agent.guard.pause import Pause
from arc_agent.jobs.outcome import Dropped, Failed, GivenBack, Outcome, Succeeded
from arc_agent.jobs.spool import Spool
from arc_agent.net.server_state import ServerState
from arc_agent.work.meter import MetricsError
from arc_agent.work.runner import Runner

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_OTHER: Final = "(other)"
"""The label of commands without a handler, and of names beyond the first hundred."""
_MAX_NAMES: Final = 100
"""Every name takes memory in Prometheus, and reloads may bring new names without end."""
_SECONDS: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800, 3600)
_OUTCOMES: Final[Mapping[type[Outcome], str]] = {
    Succeeded: "succeeded",
    Failed: "failed",
    GivenBack: "given_back",
    Dropped: "dropped",
}
"""Error codes are no label: handlers choose them, without bound."""
_CLOSE_SECONDS: Final = 0.5
"""The time limit for answers under way when the agent ends."""


class PrometheusMeter:
    """The counters, in a registry of their own, and the socket that serves them."""

    def __init__(self, listen: str) -> None:
        """Serve at `listen`, the address of `metrics.listen`."""
        self.registry: Final = CollectorRegistry()
        self._listen = listen
        self._server: web.AppRunner | None = None
        self._names: set[str] = set()
        self._ended = Counter(
            "arc_agent_commands",
            "Commands that ended, by outcome.",
            ("command", "outcome"),
            registry=self.registry,
        )
        self._handled = Histogram(
            "arc_agent_handler_seconds",
            "Time until a handler returned, raised or was stopped.",
            ("command",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._renewed = Counter(
            "arc_agent_leases_renewed", "Leases renewed.", registry=self.registry
        )
        self._polls = Histogram(
            "arc_agent_poll_seconds",
            "Time of answered lease requests; held: the server was asked to wait.",
            ("held",),
            buckets=_SECONDS,
            registry=self.registry,
        )

    async def open(self, *, runner: Runner, spool: Spool, state: ServerState, pause: Pause) -> None:
        """Listen. Raises MetricsError."""
        self.registry.register(_Gauges(runner, spool, state, pause))

        async def healthz(_request: web.Request) -> web.Response:
            return _json({"status": "ok"})  # an answer shows that the event loop runs

        async def readyz(_request: web.Request) -> web.Response:
            reason = _trouble(spool, state, pause)
            if reason is None:
                return _json({"status": "ready"})
            return _json({"status": "not ready", "reason": reason}, status=503)

        async def metrics(_request: web.Request) -> web.Response:
            text = generate_latest(self.registry)
            return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

        app = web.Application(client_max_size=1024)
        for path, answer in {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics}.items():
            app.router.add_get(path, answer)
        self._server = web.AppRunner(
            app, access_log=None, keepalive_timeout=15.0, shutdown_timeout=_CLOSE_SECONDS
        )
        await self._server.setup()
        host, port = listen_address(self._listen)
        try:
            await web.TCPSite(self._server, host, port).start()
        except OSError as error:
            await self._server.cleanup()
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise MetricsError(f"metrics.listen: {self._listen}: {reason}") from None
        bound: tuple[str, int] = self._server.addresses[0][:2]
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        log.info("metrics.listening", url=f"http://{shown}:{bound[1]}/metrics")

    async def close(self) -> None:
        """Close the socket."""
        if self._server is not None:
            await self._server.cleanup()

    def ended(self, command: str, outcome: Outcome, *, is_known: bool) -> None:
        name = self._name(command) if is_known else _OTHER
        self._ended.labels(name, _OUTCOMES[type(outcome)]).inc()

    def handled(self, command: str, seconds: float) -> None:
        self._handled.labels(self._name(command)).observe(seconds)

    def renewed(self, count: int) -> None:
        self._renewed.inc(count)

    def polled(self, seconds: float, *, is_held: bool) -> None:
        self._polls.labels("yes" if is_held else "no").observe(seconds)

    def _name(self, command: str) -> str:
        """Return the label of a command that has a handler."""
        if len(self._names) < _MAX_NAMES:
            self._names.add(command)
        return command if command in self._names else _OTHER


class _Gauges(Collector):
    """The figures that are read from the agent's parts at each request."""

    def __init__(self, runner: Runner, spool: Spool, state: ServerState, pause: Pause) -> None:
        self._runner = runner
        self._spool = spool
        self._state = state
        self._pause = pause

    def collect(self) -> Iterator[Metric]:
        """Yield one sample of each figure."""
        for name, text, value in (
            (
                "commands_running",
                "Commands that run or wait.",
                self._runner.running,
            ),
            (
                "handlers_abandoned",
                "Handlers that ignore their cancellation.",
                self._runner.abandoned,
            ),
            ("spool_results", "Undelivered responses.", len(self._spool)),
            ("spool_bytes", "Disk space of undelivered responses.", self._spool.used_bytes),
            (
                "contact_lost",
                "1: the server is unreachable, or refuses the token.",
                self._state.is_lost,
            ),
            ("takes_work", "0: paused, stopped or degraded.", not self._pause.is_on),
        ):
            yield GaugeMetricFamily(f"arc_agent_{name}", text, float(value))


def _trouble(spool: Spool, state: ServerState, pause: Pause) -> str | None:
    """Return why the agent takes no commands; None if it does.

    Every caller may read the reason: it has no notes and no addresses.
    """
    if spool.failure is not None:
        return "the spool is broken"
    order = pause.status()
    if order is not None:
        parts = ", ".join(sorted(pause.troubles))
        return f"the agent is {order.state}" + (f": {parts}" if parts else "")
    if state.is_lost:
        return "contact is lost"
    if state.answered_at is None:
        return "the server has not answered yet"
    return None


def _json(value: Mapping[str, str], status: int = 200) -> web.Response:
    """Return an answer in JSON."""
    return web.Response(text=json.dumps(value), status=status, content_type="application/json")
