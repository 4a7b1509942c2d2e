"""The verbs of the control socket: the orders that an operator gives a running agent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from arc_agent.guard.approvals import Operator
from arc_agent.guard.audit import Audit
from arc_agent.guard.gate import Gate
from arc_agent.guard.pause import MAX_NOTE_CHARS, Order, Pause
from arc_agent.host.logins import login_of
from arc_runtime.control_socket import Control, ControlRefused, ControlRequest, Peer, text_of


def register(
    control: Control,
    *,
    gate: Gate,
    pause: Pause,
    audit: Audit | None,
    halt: Callable[[], int],
    status: Callable[[], Awaitable[Mapping[str, Any]]],
) -> None:
    """Add the verbs.

    `halt` stops all running commands and returns their number; `status` returns the status.
    """

    def write_audit(event: str, by: Operator, **fields: Any) -> None:
        if audit is not None:
            audit.note(event, **by.fields(), **fields)

    async def show(_request: ControlRequest, _peer: Peer) -> Mapping[str, Any]:
        return await status()

    async def approvals(_request: ControlRequest, _peer: Peer) -> Mapping[str, Any]:
        return {"approvals": gate.approvals.shown()}

    async def approve(request: ControlRequest, peer: Peer) -> Mapping[str, Any]:
        command_id, note = text_of(request, "id"), _note(request)
        asked = gate.decide(command_id, True, note, await _operator(request, peer))
        return {"id": asked.command_id, "command": asked.command}

    async def deny(request: ControlRequest, peer: Peer) -> Mapping[str, Any]:
        command_id, note = text_of(request, "id"), _note(request)
        asked = gate.decide(command_id, False, note, await _operator(request, peer))
        return {"id": asked.command_id, "command": asked.command}

    async def pause_work(request: ControlRequest, peer: Peer) -> Mapping[str, Any]:
        seconds, note = _seconds(request), _note(request)
        by = await _operator(request, peer)
        until = None if seconds is None else time.time() + seconds
        order = Order(state="paused", note=note, until=until)
        not_kept = pause.apply(order)
        write_audit("paused", by, note=order.note, seconds=seconds)
        return {"not_kept": not_kept}

    async def resume(request: ControlRequest, peer: Peer) -> Mapping[str, Any]:
        by = await _operator(request, peer)
        try:
            was_on = pause.resume()
        except OSError as error:
            raise ControlRefused(f"the agent would stop again at its next start: {error}") from None
        write_audit("resumed", by)
        return {"was_on": was_on}

    async def stop_all(request: ControlRequest, peer: Peer) -> Mapping[str, Any]:
        note = _note(request)
        by = await _operator(request, peer)
        order = Order(state="stopped", note=note)
        not_kept = pause.apply(order)
        stopped = halt()
        write_audit("stopped_all", by, note=order.note, commands=stopped)
        return {"stopped": stopped, "not_kept": not_kept}

    for name, call in {
        "status": show,
        "approvals": approvals,
        "approve": approve,
        "deny": deny,
        "pause": pause_work,
        "resume": resume,
        "stop-all": stop_all,
    }.items():
        control.verb(name, call)


async def _operator(request: ControlRequest, peer: Peer) -> Operator:
    """Return who gives an order. The user database may be slow: a thread asks it."""
    claim = request.get("login")
    claim = claim if isinstance(claim, str) else None
    return Operator(peer.uid, await asyncio.to_thread(login_of, peer.pid, peer.uid, claim))


def _note(request: ControlRequest) -> str | None:
    """Return the note of a request; None without one. Raises ControlRefused."""
    if request.get("note") is None:
        return None
    text = text_of(request, "note", max_chars=MAX_NOTE_CHARS)
    if not text.isprintable():
        raise ControlRefused("note: one line without control characters")
    return text


def _seconds(request: ControlRequest) -> float | None:
    """Return the duration of a request; None without one. Raises ControlRefused."""
    seconds = request.get("seconds")
    if seconds is None:
        return None
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 < seconds <= 366 * 86_400:
        raise ControlRefused("seconds: more than 0, and at most a year")
    return float(seconds)
