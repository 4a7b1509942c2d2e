"""Agents: their registrations, and when each was last seen.

An agent is known by its deployment, its id and its credential together: another credential can
neither take its record over nor make it look alive.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

import msgspec
import structlog

from arc_protocol.codec import UNREADABLE, encode, utc
from arc_protocol.errors import InvalidCommand
from arc_protocol.messages.agents import AgentInfo, AgentList, AgentRegistration, HeldCommand
from arc_protocol.messages.base import CommandTarget
from arc_server.ports.agents import AgentStore
from arc_server.ports.clock import Clock
from arc_server.ports.handler_schemas import split_schemas
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.ports.records import AgentCursor, AgentPresence, CommandRecord, Holder
from arc_server.service.bounds import bounded, check_agent, check_deployment
from arc_server.service.known_agents import (
    MAX_AGENTS,
    KnownAgent,
    KnownAgents,
    Watch,
    has_ended,
    is_replaced,
    replacements,
)
from arc_server.service.limits import CommandLimits
from arc_server.service.unnamed_pollers import UnnamedPollers

log = structlog.get_logger(__name__)


class AgentService:
    """The directory of agents. `within` is the reach of the caller."""

    def __init__(
        self,
        *,
        store: AgentStore,
        clock: Clock,
        limits: CommandLimits,
        on_change: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Call `on_change` with a deployment when its commands may wait for another reason."""
        self._store = store
        self._clock = clock
        self._limits = limits
        self._on_change = on_change
        self._seen: dict[Holder, datetime] = {}
        self._unnamed = UnnamedPollers(clock.now())
        self._known = KnownAgents(self._read_known)

    def mark_polled(
        self,
        deployment_id: str,
        target: CommandTarget | None,
        agent_id: str | None,
        credential: str | None,
    ) -> None:
        """Remember a poll by an agent or, without an agent id, by an unnamed receiver."""
        if agent_id is None:
            if self._unnamed.mark(deployment_id, target, self._clock.now()):
                self._on_change(deployment_id)
        else:
            self.mark_seen((deployment_id, agent_id, credential))

    def mark_seen(self, holder: Holder) -> None:
        """Remember that an agent was there just now. Kept in memory until `flush`."""
        now = self._clock.now()
        self._seen[holder] = now
        before = self._known.mark_seen(holder, now)
        if before is not None and now >= before + self._silence:
            deployment_id, _, _ = holder
            self._on_change(deployment_id)

    @property
    def watch(self) -> Watch:
        """Return what an agent's silence means."""
        return Watch(self._unnamed.watched_since, self._silence)

    async def known(self, deployment_id: str) -> Iterable[KnownAgent]:
        """Return the agents of a deployment as they are remembered. Raises StoreUnavailable."""
        return await self._known.of(deployment_id)

    def polled_at(self, deployment_id: str, target_id: str) -> datetime | None:
        """Return when a receiver that does not register last polled for a target."""
        return self._unnamed.polled_at(deployment_id, target_id)

    async def register(
        self, agent_id: str, registration: AgentRegistration, *, within: Reach = EVERYTHING
    ) -> None:
        """Store the registration of an agent. Raises Forbidden, QuotaExceeded, and InvalidCommand
        for a time outside the calendar.

        Schemas of handlers are a courtesy: when they are too large together, none of them is kept.
        """
        check_deployment(registration.deployment_id, within)
        if registration.status is not None and registration.status.until is not None:
            utc(registration.status.until)
        if within.target is not None and registration.target is None:
            registration = msgspec.structs.replace(registration, target=within.target)
        check_agent(registration.target, agent_id, within)
        bare, schemas = split_schemas(registration)
        if schemas and len(encode(schemas)) > self._limits.max_schemas_bytes:
            log.warning("agents.schemas_left_out", agent_id=agent_id)
            registration = bare
        stored = await self._store.put_agent(
            agent_id,
            registration,
            self._clock.now(),
            within.credential,
            self._limits.quotas,
        )
        if self._known.put(stored):
            self._on_change(registration.deployment_id)

    async def list(
        self,
        deployment_id: str | None,
        *,
        within: Reach = EVERYTHING,
        with_schemas: bool = False,
        with_old: bool = False,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> AgentList:
        """Return a page of the agents of a deployment, or of all, with what they hold: those that
        were seen last first.

        Receivers that poll without registering are listed beside them, on the first page. Agents
        that were started anew, or were not seen for long, are left out unless `with_old`.

        Raises Forbidden, InvalidCommand for a bad cursor or limit.
        """
        behind = None if cursor is None else _read_cursor(cursor)
        most = self._limits.max_agents_listed
        limit = bounded("limit", limit, most, most)
        if deployment_id is None:
            deployment_id = within.deployment()
        else:
            check_deployment(deployment_id, within)
        await self.flush()
        now = self._clock.now()
        seconds = self._limits.agents_seen_within_seconds
        if not with_old:
            seconds = min(seconds, self._limits.gone_agents_listed_seconds)
        since = now - timedelta(seconds=seconds)
        page = await self._store.list_agents(
            deployment_id, since, limit, with_schemas=with_schemas, behind=behind
        )
        found = sorted(page.agents, key=lambda agent: agent.last_seen_at, reverse=True)
        presence = None
        if deployment_id is not None:
            known = await self._store.get_deployment(deployment_id)
            is_pushed = known is not None and known.push_url is not None
            presence = self._unnamed.of(
                deployment_id,
                now,
                is_pushed=is_pushed,
                circuit=None if known is None else known.circuit,
            )
        receivers = [] if behind else self._unnamed.receivers(deployment_id, since)
        replaced_at = replacements(found)
        watch = self.watch
        agents: list[AgentInfo] = []
        for agent in found:
            if not within.allows_deployment(agent.registration.deployment_id):
                continue
            is_old = is_replaced(agent.last_seen_at, replaced_at.get(agent.holder))
            has_left = is_old or has_ended(agent.registration.status)
            if with_old or not is_old:
                is_silent = now >= watch.silent_at(agent.last_seen_at)
                agents.append(_info(agent, within, is_gone=has_left or is_silent))
        return AgentList(
            presence=presence,
            receivers=[each for each in receivers if within.allows_deployment(each.deployment_id)][
                : self._limits.max_agents_listed
            ]
            or None,
            agents=agents,
            cursor=None if page.next is None else _written_cursor(page.next),
        )

    async def flush(self) -> None:
        """Store when agents were last seen."""
        seen, self._seen = self._seen, {}
        if not seen:
            return
        try:
            await self._store.touch_agents(seen)
        except BaseException:  # also the end of the sweeper
            self._seen = seen | self._seen
            raise

    async def _read_known(self, deployment_id: str) -> Sequence[AgentPresence]:
        """Read the agents of a deployment that were seen last."""
        await self.flush()
        return await self._store.latest_agents(deployment_id, MAX_AGENTS)

    @property
    def _silence(self) -> timedelta:
        return timedelta(seconds=self._limits.silent_seconds)


def _written_cursor(cursor: AgentCursor) -> str:
    return urlsafe_b64encode(msgspec.json.encode(cursor)).decode("ascii")


def _read_cursor(text: str) -> AgentCursor:
    """Return the cursor of a page. Raises InvalidCommand."""
    try:
        return msgspec.json.decode(urlsafe_b64decode(text.encode()), type=AgentCursor)
    except (ValueError, *UNREADABLE):
        raise InvalidCommand("cursor: not one of this server", field="cursor") from None


def _info(agent: AgentPresence, within: Reach, *, is_gone: bool) -> AgentInfo:
    return AgentInfo(
        agent_id=agent.agent_id,
        deployment_id=agent.registration.deployment_id,
        target=agent.registration.target,
        version=agent.registration.version,
        hostname=agent.registration.hostname,
        handlers=agent.registration.handlers,
        status=agent.registration.status,
        first_seen_at=agent.first_seen_at,
        last_seen_at=agent.last_seen_at,
        holding=[_held(command) for command in agent.holding if within.covers(command)],
        is_gone=is_gone or None,
        credential=agent.credential,
    )


def _held(command: CommandRecord) -> HeldCommand:
    return HeldCommand(
        command_id=command.command_id,
        command=command.command,
        attempt=command.attempt,
        lease_expires_at=command.lease_expires_at or command.created_at,
    )
