"""Telling the server who is here and what it can do. Never more than a courtesy."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

import structlog

from arc_agent import __version__
from arc_agent.config.sections import Config
from arc_agent.handlers.descriptions import advertised
from arc_agent.handlers.registry import Registry
from arc_agent.net.connection import Connection, NoContact
from arc_agent.net.server_state import Contact
from arc_protocol.messages.agents import AgentRegistration, AgentStatus

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_TIMEOUT_SECONDS: Final = 5.0
"""No more: asking for work waits for it."""


class Registration:
    """Registers the agent once in each contact with the server."""

    def __init__(
        self,
        *,
        agent_id: str,
        config: Callable[[], Config],
        registry: Callable[[], Registry],
        connection: Connection,
        contact: Contact,
        status: Callable[[], AgentStatus | None],
    ) -> None:
        self._agent_id = agent_id
        self._config = config
        self._registry = registry
        self._connection = connection
        self._contact = contact
        self._status = status
        self._announced: tuple[int, int] | None = None
        self._changes = 0

    def changed(self) -> None:
        """There are other handlers now, or another status: the server is told again."""
        self._changes += 1

    async def announce(self) -> None:
        """Register, unless this contact has seen it. Failures are left to the next try."""
        epoch = (self._contact.epoch, self._changes)
        if self._announced == epoch or not self._contact.supports("agents"):
            return
        config = self._config()
        message = AgentRegistration(
            deployment_id=config.deployment_id,
            target=config.command_target,
            version=__version__,
            hostname=socket.gethostname()[:256] or "unknown",
            handlers=advertised(self._registry(), config.handlers),
            status=self._status(),
        )
        try:
            answer = await self._connection.call(
                "PUT",
                self._connection.url("agents", self._agent_id),
                message,
                timeout_seconds=_TIMEOUT_SECONDS,
            )
        except NoContact as error:
            log.debug("registration.failed", reason=error.reason)
            return
        self._announced = epoch
        self._contact.succeeded("agents")
        if answer.status in (404, 405):
            self._contact.lacks("agents")
        elif answer.status >= 300:
            log.warning("registration.refused", status=answer.status)
        else:
            self._contact.knows_additions = True
