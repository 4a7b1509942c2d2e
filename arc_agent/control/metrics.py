"""The health and Prometheus endpoint of an agent that is told to have one (`metrics.listen`).

Nothing of it is imported otherwise. It answers GET /healthz, /readyz and /metrics, and knows no
secrets: a command's name is told only when a handler has it. docs/operating.md lists the figures.
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
"""For commands that no handler knows, and for names beyond the first hundred."""
_MAX_NAMES: Final = 100
"""Reloads may bring new handlers for ever, and each name costs a host's Prometheus memory."""
_SECONDS: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800, 3600)
_OUTCOMES: Final[Mapping[type[Outcome], str]] = {
    Succeeded: "succeeded",
    Failed: "failed",
    GivenBack: "given_back",
    Dropped: "dropped",
}
"""Codes of errors are the handlers' own and without bound: they are no label."""
_CLOSE_SECONDS: Final = 0.5
"""How long an answer under way may hold up the agent's end."""


class PrometheusMeter:
    """The counters, in a registry of their own, and the socket where they are read."""

    def __init__(self, listen: str) -> None:
        """`listen` is the address of `metrics.listen`."""
        self.registry: Final = CollectorRegistry()
        self._listen = listen
        self._server: web.AppRunner | None = None
        self._names: set[str] = set()
        self._ended = Counter(
            "arc_agent_commands",
            "Commands that have come to an end, by what came of them.",
            ("command", "outcome"),
            registry=self.registry,
        )
        self._handled = Histogram(
            "arc_agent_handler_seconds",
            "How long handlers ran, until they returned, raised or were stopped.",
            ("command",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._renewed = Counter(
            "arc_agent_leases_renewed", "Leases that were renewed.", registry=self.registry
        )
        self._polls = Histogram(
            "arc_agent_poll_seconds",
            "How long answered lease requests took; held: whether the server was asked to wait.",
            ("held",),
            buckets=_SECONDS,
            registry=self.registry,
        )

    async def open(self, *, runner: Runner, spool: Spool, state: ServerState, pause: Pause) -> None:
        """Listen. Raises MetricsError."""
        self.registry.register(_Now(runner, spool, state, pause))

        async def healthz(_request: web.Request) -> web.Response:
            return _json({"status": "ok"})  # that its main loop answers is all there is to it

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
        """Listen no more."""
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
        """The label for a command that a handler knows."""
        if len(self._names) < _MAX_NAMES:
            self._names.add(command)
        return command if command in self._names else _OTHER


class _Now(Collector):
    """What is as it is: looked at when somebody asks."""

    def __init__(self, runner: Runner, spool: Spool, state: ServerState, pause: Pause) -> None:
        self._runner = runner
        self._spool = spool
        self._state = state
        self._pause = pause

    def collect(self) -> Iterator[Metric]:
        """One sample each."""
        for name, text, value in (
            (
                "commands_running",
                "Commands that are held and not at their end.",
                self._runner.running,
            ),
            (
                "handlers_abandoned",
                "Handlers that ignore their cancellation.",
                self._runner.abandoned,
            ),
            ("spool_results", "Results that the server has not taken yet.", len(self._spool)),
            ("spool_bytes", "What these take on the disk.", self._spool.used_bytes),
            ("contact_lost", "1: the server does not answer or refuses.", self._state.is_lost),
            ("takes_work", "0: paused, stopped or in trouble.", not self._pause.is_on),
        ):
            yield GaugeMetricFamily(f"arc_agent_{name}", text, float(value))


def _trouble(spool: Spool, state: ServerState, pause: Pause) -> str | None:
    """Why it takes on no work; None when it does. No notes and no addresses: anybody may ask."""
    if spool.failure is not None:
        return "the spool is broken"
    said = pause.status()
    if said is not None:
        parts = ", ".join(sorted(pause.troubles))
        return f"it is {said.state}" + (f": {parts}" if parts else "")
    if state.is_lost:
        return "contact is lost"
    if state.answered_at is None:
        return "the server has not answered yet"
    return None


def _json(value: Mapping[str, str], status: int = 200) -> web.Response:
    """An answer."""
    return web.Response(text=json.dumps(value), status=status, content_type="application/json")
