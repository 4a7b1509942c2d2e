"""Registration announces the agent to the server, with its handlers and its status.

It is a courtesy: no work waits for a registration that fails.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

import structlog

from arc_agent.handlers.descriptions import advertised
from arc_agent.net.connection import NoContact
from arc_agent.net.server import Server
from arc_agent.version import __version__
from arc_agent.work.live_config import LiveConfig
from arc_protocol.messages.agents import AgentRegistration, AgentStatus

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_TIMEOUT_SECONDS: Final = 5.0
"""No longer: the next lease request waits for it."""


class Registration:
    """Registers the agent once in each contact with the server, and after each change."""

    def __init__(
        self,
        *,
        agent_id: str,
        live: LiveConfig,
        server: Server,
        status: Callable[[], AgentStatus | None],
    ) -> None:
        """Report the agent's `status`; it returns None when all is well."""
        self._agent_id = agent_id
        self._live = live
        self._server = server
        self._status = status
        self._sent: tuple[int, int] | None = None
        self._changes = 0
        self._turn = asyncio.Lock()
        """One request at a time: an older status must not arrive after a newer one."""
        self._hurried: set[asyncio.Task[None]] = set()

    def hurry(self) -> None:
        """Register again at once, beside a poll that the server holds: senders are to know."""
        self.expire()
        if self.is_due:
            task = asyncio.get_running_loop().create_task(self.send(), name="registration")
            self._hurried.add(task)
            task.add_done_callback(self._hurried.discard)

    def close(self) -> None:
        """Give up what is on its way."""
        for task in list(self._hurried):
            task.cancel()

    def expire(self) -> None:
        """Register again at the next chance: the handlers or the status have changed."""
        self._changes += 1

    @property
    def is_due(self) -> bool:
        """Return True if the server takes registrations and has not seen this one."""
        return self._sent != self._version and self._server.state.supports("agents")

    @property
    def _version(self) -> tuple[int, int]:
        """Return a value that changes with each contact and each change of the agent."""
        return self._server.state.epoch, self._changes

    async def send(self) -> None:
        """Register, if it is due. A failure is left to the next call."""
        async with self._turn:
            if self.is_due:
                await self._send()

    async def _send(self) -> None:
        """Register."""
        version, config = self._version, self._live.config
        connection, state = self._server.connection, self._server.state
        message = AgentRegistration(
            deployment_id=config.deployment_id,
            target=config.command_target,
            version=__version__,
            hostname=socket.gethostname()[:256] or "unknown",
            handlers=advertised(self._live.registry, config.handlers),
            status=self._status(),
        )
        try:
            answer = await connection.call(
                "PUT",
                connection.url("agents", self._agent_id),
                message,
                timeout_seconds=_TIMEOUT_SECONDS,
            )
        except NoContact as error:
            log.debug("registration.failed", reason=error.reason)
            return
        self._sent = version
        state.succeeded("agents")
        if answer.status in (404, 405):
            state.lacks("agents")
        elif answer.status >= 300:
            log.warning("registration.refused", status=answer.status)
        else:
            state.knows_extensions = True
