"""The status of a running agent for `arc-agent status`: facts, without secrets and params."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from arc_agent.guard.gate import Gate
from arc_agent.guard.pause import Pause
from arc_agent.guard.turns import KeyedTurns
from arc_agent.host.clock import MonotonicClock
from arc_agent.jobs.lease_table import HeldLease, LeaseTable
from arc_agent.jobs.spool import Spool
from arc_agent.net.server_state import ServerState
from arc_agent.version import __version__
from arc_agent.work.event_sender import EventSender
from arc_agent.work.live_config import LiveConfig
from arc_agent.work.poller import Poller
from arc_agent.work.runner import Runner
from arc_protocol.urls import redact
from arc_runtime.logs.redaction import mask_known

CLOCK_OFF_SECONDS: Final = 60.0
"""A greater difference between this host's clock and the server's is reported."""


class StatusSources(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of the agent that the status is read from."""

    agent_id: str
    started_at: float
    """On the agent's clock."""
    live: LiveConfig
    clock: MonotonicClock
    state: ServerState
    leases: LeaseTable
    runner: Runner
    spool: Spool
    gate: Gate
    handler_turns: KeyedTurns
    pause: Pause
    event_sender: EventSender
    poller: Poller


async def facts(sources: StatusSources) -> Mapping[str, Any]:
    """Return the status as JSON values. Times are seconds from now, so that no clock matters."""
    config = sources.live.config
    target = config.command_target
    contact = _contact(sources)
    credential = msgspec.to_builtins(await asyncio.to_thread(sources.live.token.status))
    degraded = _degraded(sources, contact, credential)
    return {
        "agent_id": sources.agent_id,
        "name": config.agent_name,
        "version": __version__,
        "pid": os.getpid(),
        "up_seconds": _rounded(sources.clock() - sources.started_at),
        "server": redact(config.server.url or ""),
        "deployment": config.deployment_id,
        "target": None
        if target is None
        else {"id": target.resource_id, "type": target.resource_type},
        "is_healthy": not degraded,
        "degraded": degraded,
        "order": _order(sources.pause),
        "contact": contact,
        "credential": credential,
        "running": [_command(sources, each) for each in sources.leases.all()],
        "max_concurrent": config.max_concurrent,
        "done": sources.runner.done,
        "approvals": [_approval(each) for each in sources.gate.approvals.shown()],
        "spool": await _spool(sources),
        "policy": _policy(sources.live),
        "handlers": sorted(handler.name for handler in sources.live.registry),
    }


def _contact(sources: StatusSources) -> dict[str, Any]:
    """Return the state of the contact with the server."""
    answered_at, trouble = sources.state.answered_at, sources.state.trouble()
    return {
        "is_lost": trouble is not None,
        "answered_seconds_ago": None
        if answered_at is None
        else _rounded(sources.clock() - answered_at),
        "lost_for_seconds": None if trouble is None else _rounded(trouble[1]),
        "reason": None if trouble is None else mask_known(trouble[0]),
        "held_seconds": None
        if sources.poller.held_seconds is None
        else _rounded(sources.poller.held_seconds),
    }


def _command(sources: StatusSources, held: HeldLease) -> dict[str, Any]:
    """Return a leased command."""
    progress = sources.event_sender.progress_of(held.lease_id)
    now = sources.clock()
    return {
        "id": held.command_id,
        "command": held.command,
        "attempt": held.attempt,
        "state": _state(sources, held),
        "for_seconds": _rounded(now - held.since),
        "lease_seconds_left": _rounded(held.ends_at - now),
        "progress": None
        if progress is None
        else {"done": progress.done, "total": progress.total, "text": progress.text},
    }


def _state(sources: StatusSources, held: HeldLease) -> str:
    """Return the state of a leased command."""
    if held.has_result:
        return "delivering"
    if held.end is not None:
        return "stopping"
    is_queued = sources.handler_turns.is_waiting(held.lease_id)
    if sources.gate.has_started(held.lease_id):
        return "waiting" if is_queued else "running"
    is_waiting = is_queued or sources.gate.is_waiting(held.lease_id)
    return "waiting" if is_waiting else "starting"


def _approval(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return a command that waits for approval. Only `arc-agent approvals` shows its params."""
    return {name: asked[name] for name in ("id", "command", "rule", "since", "until")}


async def _spool(sources: StatusSources) -> dict[str, Any]:
    """Return the undelivered responses."""
    spool = sources.spool
    try:
        oldest_at = await spool.oldest_at()
    except sqlite3.Error:
        oldest_at = None
    return {
        "count": len(spool),
        "bytes": spool.used_bytes,
        "max_bytes": sources.live.config.spool.max_bytes,
        "oldest_seconds": None
        if oldest_at is None
        else _rounded(max(0.0, time.time() - oldest_at)),
    }


def _policy(live: LiveConfig) -> dict[str, Any] | None:
    """Return the current policy; None without one."""
    policy = live.policy
    if policy is None:
        return None
    return {"file": str(policy.source), "rules": len(policy.rules), "sha256": policy.sha256}


def _order(pause: Pause) -> dict[str, Any] | None:
    """Return the operator's order to pause or stop; None without one."""
    order = pause.status()
    if order is None or order.state == "degraded":
        return None
    until = order.until.isoformat(timespec="seconds") if order.until is not None else None
    return {"state": order.state, "note": order.note, "until": until}


def _degraded(
    sources: StatusSources, contact: Mapping[str, Any], credential: Mapping[str, Any]
) -> list[dict[str, str]]:
    """Return the parts that are degraded, each with its reason."""
    found = dict(sources.pause.troubles)
    if contact["is_lost"]:
        found["contact"] = str(contact["reason"])
    elif contact["answered_seconds_ago"] is None:
        found["contact"] = "the server has not answered yet"
    if credential.get("state") in ("refused", "unreachable"):
        found["credential"] = mask_known(str(credential.get("reason") or credential["state"]))
    if sources.spool.failure is not None:
        found["spool"] = sources.spool.failure
    if sources.runner.abandoned:
        found["handlers"] = f"{sources.runner.abandoned} ignore their cancellation and still run"
    offset = sources.live.network.clock_offset
    if offset is not None and abs(offset) > CLOCK_OFF_SECONDS:
        ahead = "ahead of" if offset > 0 else "behind"
        found["clock"] = f"{abs(offset):.0f} s {ahead} the server's"
    return [{"part": part, "reason": reason} for part, reason in sorted(found.items())]


def _rounded(seconds: float) -> float:
    """Return seconds rounded to tenths."""
    return round(seconds, 1)
