"""Reasons for which commands wait, as far as the server knows: from agents and from holders.

The reasons are made from memory (known_agents.py), and only for a sender that waits already: a
command that is taken at once costs nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final, NamedTuple

import msgspec

from arc_protocol import lifecycle
from arc_protocol.codec import encode
from arc_protocol.messages.base import State
from arc_protocol.messages.waiting import NOTHING_KNOWN, Waiting, WaitingLease, WaitingReason
from arc_server.ports.clock import Clock
from arc_server.ports.records import CommandRecord
from arc_server.service.agents import AgentService
from arc_server.service.known_agents import KnownAgent, Watch
from arc_server.service.result_waiters import ResultWaiters
from arc_server.service.unnamed_pollers import UNREGISTERED_SILENCE

UNREMARKABLE: Final = timedelta(seconds=0.9)
"""A command younger than this has not begun to wait: less than a sender's first wait of 1 s."""
MAX_REPORTS: Final = 10_000
"""Reports of holders that are kept; past it, the oldest is forgotten."""
_TAG_CHARS: Final = 16
_ANY_TIME: Final = datetime(1970, 1, 1, tzinfo=UTC)


class ReasonReport(NamedTuple):
    """A holder's report that a command waits on its host, and when the holder first made it."""

    waiting: WaitingLease
    since: datetime


class WaitVerdict(NamedTuple):
    """Why a command waits, and when time alone may change that."""

    waiting: Waiting | None
    changes_at: datetime | None = None

    @property
    def tag(self) -> str:
        """Return what a sender names that knows this verdict."""
        return NOTHING_KNOWN if self.waiting is None else self.waiting.tag


NOTHING_TO_SAY: Final = WaitVerdict(None)


def waits_from(created_at: datetime) -> datetime:
    """Return from when on a command waits that was created then."""
    return created_at + UNREMARKABLE


class WaitingReasons:
    """The reasons of this process. For the event loop only."""

    def __init__(self, *, agents: AgentService, clock: Clock, results: ResultWaiters) -> None:
        self._agents = agents
        self._clock = clock
        self._results = results
        self._reports: dict[str, ReasonReport] = {}

    def report(
        self, renewed: Sequence[CommandRecord], waiting: Sequence[WaitingLease] | None
    ) -> None:
        """Take in which of the renewed leases wait on their host, and wake their senders."""
        if not waiting and not self._reports:
            return
        by_lease = {each.lease_id: each for each in waiting or ()}
        for command in renewed:
            before = self._reports.get(command.command_id)
            now = by_lease.get(command.lease_id or "")
            if now == (None if before is None else before.waiting):
                continue
            self._reports.pop(command.command_id, None)
            if now is not None:
                if len(self._reports) >= MAX_REPORTS:
                    del self._reports[next(iter(self._reports))]
                self._reports[command.command_id] = ReasonReport(now, self._clock.now())
            self._results.wake_for_reasons(command.command_id)

    async def of(self, command: CommandRecord) -> WaitVerdict:
        """Return why a command waits. Raises StoreUnavailable."""
        is_held = command.state is State.DISPATCHED
        if lifecycle.is_delayed(command.not_before, self._clock.now()):
            return WaitVerdict(None, command.not_before)
        if command.is_push or not (is_held or command.state is State.PENDING):
            return NOTHING_TO_SAY
        agents = await self._agents.known(command.deployment_id)
        watch, now = self._agents.watch, self._clock.now()
        if is_held:
            report = self._reports.get(command.command_id)
            return _of_held(command, agents, report, watch, now)
        target_id = command.target.resource_id
        serving = [each for each in agents if each.serves(target_id)]
        polled_at = self._agents.polled_at(command.deployment_id, target_id)
        return _of_ready(serving, polled_at, watch, now)


def _of_held(
    command: CommandRecord,
    agents: Iterable[KnownAgent],
    report: ReasonReport | None,
    watch: Watch,
    now: datetime,
) -> WaitVerdict:
    """Return why a command waits that an agent or another receiver holds."""
    named = (command.deployment_id, command.lease_holder, command.lease_credential)
    holder = next((each for each in agents if each.holder == named), None)
    if holder is not None and (holder.has_ended or now >= watch.silent_at(holder.last_seen_at)):
        return WaitVerdict(_of_absent(holder, now))
    changes_at = None if holder is None else watch.silent_at(holder.last_seen_at)
    if report is None or report.waiting.lease_id != command.lease_id:
        return WaitVerdict(None, changes_at)
    return WaitVerdict(
        _tagged(
            Waiting(
                reason=report.waiting.reason,
                tag="",
                now=now,
                hostname=None if holder is None else holder.hostname,
                since=report.since,
                until=report.waiting.until,
            )
        ),
        changes_at,
    )


def _of_ready(
    agents: Sequence[KnownAgent], polled_at: datetime | None, watch: Watch, now: datetime
) -> WaitVerdict:
    """Return why a command that is ready is not taken: by the agents that serve its target, and
    by the last poll for it of a receiver that does not register."""
    here = [
        each for each in agents if not each.has_ended and now < watch.silent_at(each.last_seen_at)
    ]
    unnamed_until = None if polled_at is None else polled_at + UNREGISTERED_SILENCE
    if unnamed_until is not None and now < unnamed_until:
        return WaitVerdict(None, unnamed_until)
    if here:
        changes_at = min(watch.silent_at(each.last_seen_at) for each in here)
        return WaitVerdict(_of_present(here, now), changes_at)
    certain_at = watch.since + UNREGISTERED_SILENCE
    is_absent = now >= certain_at or None
    latest = max(agents, key=lambda each: each.last_seen_at, default=None)
    if polled_at is not None and (latest is None or latest.last_seen_at < polled_at):
        waiting = Waiting(reason=WaitingReason.SILENT, tag="", now=now, since=polled_at)
    elif latest is not None:
        waiting = _of_absent(latest, now)
    else:
        waiting = Waiting(reason=WaitingReason.NEVER_SEEN, tag="", now=now)
    waiting = _tagged(msgspec.structs.replace(waiting, is_absent=is_absent))
    return WaitVerdict(waiting, None if is_absent else certain_at)


def _of_present(here: Sequence[KnownAgent], now: datetime) -> Waiting | None:
    """Return why agents that are there take nothing; None if one of them takes commands."""
    if any(each.status is None for each in here):
        return None
    first = min(here, key=_resumes_at)
    status = first.status
    assert status is not None
    return _tagged(
        Waiting(
            reason=status.state,
            tag="",
            now=now,
            hostname=first.hostname,
            note=status.note,
            until=status.until,
        )
    )


def _resumes_at(agent: KnownAgent) -> tuple[float, str]:
    """Return the order of agents that take nothing: by the end of their pause, then by id."""
    until = None if agent.status is None else agent.status.until
    _, agent_id, _ = agent.holder
    return math.inf if until is None else until.timestamp(), agent_id


def _of_absent(agent: KnownAgent, now: datetime) -> Waiting:
    """Return that an agent is not there any more."""
    is_gone = agent.status is not None and agent.status.state == WaitingReason.GONE
    return _tagged(
        Waiting(
            reason=WaitingReason.GONE if is_gone else WaitingReason.SILENT,
            tag="",
            now=now,
            hostname=agent.hostname,
            since=agent.last_seen_at,
        )
    )


def _tagged(waiting: Waiting) -> Waiting:
    """Return a reason with the tag that stands for all of it but the time of the answer."""
    facts = encode(msgspec.structs.replace(waiting, tag="", now=_ANY_TIME))
    return msgspec.structs.replace(waiting, tag=sha256(facts).hexdigest()[:_TAG_CHARS])
