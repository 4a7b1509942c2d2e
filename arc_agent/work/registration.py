"""Registration announces the agent to the server, with its handlers and its status.

It is a courtesy: no work waits for a registration that fails. The id of the start that the server
knows is kept in the data directory, so that the next start can take its place in lists.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from arc_agent.handlers.descriptions import advertised
from arc_agent.net.connection import Answer, NoContact
from arc_agent.net.server import Server
from arc_agent.version import __version__
from arc_agent.work.live_config import LiveConfig
from arc_protocol.messages.agents import AgentRegistration, AgentStatus
from arc_protocol.messages.waiting import WaitingReason

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_TIMEOUT_SECONDS: Final = 5.0
"""No longer: the next lease request waits for it."""
_GOODBYE_SECONDS: Final = 2.0
"""No longer: the process waits for it to end."""
_FILE: Final = "registered"
_ID: Final = re.compile(r"[!-~]{1,256}", re.ASCII)


class Registration:
    """Registers the agent once in each contact with the server, and after each change."""

    def __init__(
        self,
        *,
        agent_id: str,
        live: LiveConfig,
        server: Server,
        status: Callable[[], AgentStatus | None],
        directory: Path,
    ) -> None:
        """Report the agent's `status`; it returns None when all is well.

        Keep the id in `directory`, which no other process uses.
        """
        self._agent_id = agent_id
        self._path = directory / _FILE
        self._replaces = _read_id(self._path)
        self._is_known = False
        """The server has taken a registration of this start."""
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
        version, state = self._version, self._server.state
        answer = await self._put(self._status(), _TIMEOUT_SECONDS)
        if answer is None:
            return
        self._sent = version
        state.succeeded("agents")
        if answer.status in (404, 405):
            state.lacks("agents")
        elif answer.status >= 300:
            log.warning("registration.refused", status=answer.status)
        else:
            state.knows_extensions = True
            await self._keep_id()

    async def say_goodbye(self) -> None:
        """Register as gone, if the server is there and knows this agent. The process ends."""
        self.close()
        async with self._turn:
            if not self._is_known or self._server.state.is_lost:
                return
            await self._put(AgentStatus(state=WaitingReason.GONE), _GOODBYE_SECONDS)

    async def _put(self, status: AgentStatus | None, timeout_seconds: float) -> Answer | None:
        """Send a registration; return None when there is no answer."""
        config, connection = self._live.config, self._server.connection
        message = AgentRegistration(
            deployment_id=config.deployment_id,
            target=config.command_target,
            version=__version__,
            hostname=socket.gethostname()[:256] or "unknown",
            handlers=advertised(self._live.registry, config.handlers),
            status=status,
            replaces=self._replaces,
        )
        url = connection.url("agents", self._agent_id)
        try:
            return await connection.call("PUT", url, message, timeout_seconds=timeout_seconds)
        except NoContact as error:
            log.debug("registration.failed", reason=error.reason)
            return None

    async def _keep_id(self) -> None:
        """Keep the id of this start for the next one."""
        if self._is_known:
            return
        self._is_known = True
        try:
            await asyncio.to_thread(self._path.write_text, self._agent_id)
        except OSError as error:
            log.debug("registration.not_kept", reason=str(error))


def _read_id(path: Path) -> str | None:
    """Return the id that an earlier start has kept."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return text if _ID.fullmatch(text) else None
